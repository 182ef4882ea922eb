// The same as similar.mjs over gRPC, with the .proto files of this repository:
//
//   npm install --prefix examples/node
//   node examples/node/grpc.mjs a.jpg b.jpg
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../protos", import.meta.url));
const definition = protoLoader.loadSync("multigrain/v1/embedding.proto", {
  includeDirs: [protos],
  keepCase: true,
});
const { EmbeddingService } = grpc.loadPackageDefinition(definition).multigrain.v1;
const address = process.env.MULTIGRAIN_SERVER ?? "127.0.0.1:50051";
const client = new EmbeddingService(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
if (process.env.MULTIGRAIN_TOKEN) {
  metadata.set("authorization", `Bearer ${process.env.MULTIGRAIN_TOKEN}`);
}

function call(method, request) {
  const options = { deadline: Date.now() + 30_000 };
  return new Promise((resolve, reject) => {
    client[method](request, metadata, options, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

const paths = process.argv.slice(2);
if (paths.length !== 2) {
  console.error("usage: node grpc.mjs IMAGE IMAGE");
  process.exit(2);
}
try {
  const images = await Promise.all(paths.map((path) => readFile(path)));
  const { results } = await call("Classify", { images, top_k: 1 });
  results.forEach(({ status, classes }, i) => {
    if (status?.code) {
      throw new Error(status.message); // of this image
    }
    console.log(`${paths[i]}: ${classes[0].label} ${classes[0].probability.toFixed(3)}`);
  });
  const answer = await call("Embed", { images });
  const [a, b] = answer.results.map(
    ({ embedding }) => new Float32Array(new Uint8Array(embedding.data).buffer),
  );
  console.log(`similarity ${a.reduce((sum, value, i) => sum + value * b[i], 0).toFixed(4)}`);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
client.close();
