"use strict";
// Sends a picture to the HTTP API of this daemon and shows the answer. Texts of the answer are set
// as text only.
const $ = (id) => document.getElementById(id);

function fact(list, name, value) {
  const term = document.createElement("dt");
  const text = document.createElement("dd");
  const box = document.createElement("div");
  term.textContent = name;
  text.textContent = value;
  box.append(term, text);
  list.append(box);
}

async function call(path, options) {
  // Not relative to the address of the page, which may hold a password.
  const response = await fetch(location.origin + path, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(answer.error ? answer.error.message : "status " + response.status);
  }
  return answer;
}

async function listModels() {
  const answer = await call("/v1/models?loaded_only=true");
  const models = answer.models || [];
  for (const model of models) {
    const option = document.createElement("option");
    option.value = model.name + "@" + model.version;
    option.textContent = option.value;
    $("model").append(option);
  }
  if (!models.length) {
    $("state").textContent = "No model is loaded. Type: multigrain load MODEL --default";
  }
}

function showClasses(result) {
  const list = $("classes");
  list.replaceChildren();
  for (const found of result.classes || []) {
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    const meter = document.createElement("meter");
    const share = document.createElement("span");
    const row = document.createElement("div");
    meter.value = found.probability || 0;
    share.textContent = (100 * meter.value).toFixed(1) + " %";
    term.textContent = found.label || "class " + (found.class_id || 0);
    text.append(meter, share);
    row.className = "meter";
    row.append(term, text);
    list.append(row);
  }
}

function showVector(result) {
  const bytes = Uint8Array.from(atob(result.embedding.data), (c) => c.charCodeAt(0));
  const numbers = Array.from(new Float32Array(bytes.buffer));
  const length = Math.sqrt(numbers.reduce((sum, value) => sum + value * value, 0));
  $("vector").textContent = numbers.length + " numbers, length " + length.toFixed(3);
  $("numbers").textContent =
    numbers.slice(0, 12).map((value) => value.toFixed(4)).join("  ") + (numbers.length > 12 ? " …" : "");
}

function showFacts(file, answer, milliseconds) {
  const list = $("facts");
  list.replaceChildren();
  const stages = [["decode", "Decode"], ["queue", "Wait"], ["compute", "Compute"], ["total", "In the daemon"]];
  fact(list, "Model", answer.model);
  fact(list, "File", (file.size / 1024).toFixed(0) + " KiB");
  for (const [key, name] of stages) {
    fact(list, name, ((answer.timings[key + "_ns"] || 0) / 1e6).toFixed(1) + " ms");
  }
  fact(list, "Round trip", milliseconds.toFixed(1) + " ms");
}

let newest = 0;

async function send(file) {
  const mine = ++newest;
  const query = "?model=" + encodeURIComponent($("model").value);
  const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
  $("state").textContent = "Computing…";
  try {
    const began = performance.now();
    const embedded = await call("/v1/embed" + query, options);
    const milliseconds = performance.now() - began;
    const result = embedded.results[0];
    if (!result.embedding) {
      throw new Error(result.status.message);
    }
    const classified = await call("/v1/classify" + query + "&top_k=5", options);
    if (mine !== newest) {
      return; // another picture was sent meanwhile
    }
    URL.revokeObjectURL($("preview").src);
    $("preview").src = URL.createObjectURL(file);
    showFacts(file, embedded, milliseconds);
    showClasses(classified.results[0]);
    showVector(result);
    $("answer").hidden = false;
    $("state").textContent = "";
  } catch (error) {
    if (mine === newest) {
      $("answer").hidden = true;
      $("state").textContent = error.message;
    }
  }
}

$("file").addEventListener("change", () => $("file").files.length && send($("file").files[0]));
$("model").addEventListener("change", () => $("file").files.length && send($("file").files[0]));
$("form").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) {
    send(event.dataTransfer.files[0]);
  }
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    send(event.clipboardData.files[0]);
  }
});
listModels().catch((error) => { $("state").textContent = error.message; });
