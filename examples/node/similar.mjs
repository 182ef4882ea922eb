// Tells how similar two pictures are, and the most probable class of each, over HTTP.
// Needs Node 18 or newer and a daemon with a loaded model:
//
//   node examples/node/similar.mjs a.jpg b.jpg
import { readFile } from "node:fs/promises";

const address = process.env.MULTIGRAIN_HTTP ?? "http://127.0.0.1:9464";
const headers = { "Content-Type": "application/octet-stream" };
if (process.env.MULTIGRAIN_TOKEN) {
  headers.Authorization = `Bearer ${process.env.MULTIGRAIN_TOKEN}`;
}

async function post(route, body) {
  const response = await fetch(address + route, { method: "POST", headers, body });
  const answer = await response.json();
  if (!response.ok) {
    throw new Error(answer.error.message);
  }
  const [result] = answer.results;
  if (result.status?.code) {
    throw new Error(result.status.message); // of this image
  }
  return result;
}

async function embed(path) {
  const image = await readFile(path);
  const { embedding } = await post("/v1/embed", image);
  const { classes } = await post("/v1/classify?top_k=1", image);
  // A copy: the bytes of a Buffer need not be aligned.
  const bytes = new Uint8Array(Buffer.from(embedding.data, "base64"));
  console.log(`${path}: ${classes[0].label} ${(classes[0].probability ?? 0).toFixed(3)}`);
  return new Float32Array(bytes.buffer);
}

const paths = process.argv.slice(2);
if (paths.length !== 2) {
  console.error("usage: node similar.mjs IMAGE IMAGE");
  process.exit(2);
}
try {
  const [a, b] = [await embed(paths[0]), await embed(paths[1])];
  // Vectors have length 1, so the inner product is the cosine.
  console.log(`similarity ${a.reduce((sum, value, i) => sum + value * b[i], 0).toFixed(4)}`);
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
