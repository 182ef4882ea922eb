"""Takes away from a process what it does not need, with what the kernel of Linux offers for it.

It is meant for processes that read bytes of strangers: engines, decoder processes and workers.
:mod:`multigrain.sandbox.apply` describes and applies a sandbox,
:mod:`multigrain.sandbox.policies` has the sandboxes of this project. Nothing here imports a heavy
package: a sandbox is applied before there are threads.
"""
