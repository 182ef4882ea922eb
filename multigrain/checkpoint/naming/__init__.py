"""What other programs call the parameters of the same networks."""
