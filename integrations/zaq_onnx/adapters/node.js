// Loads a model and runs it, in ONNX Runtime's package that a request names: a JSON line in, one out.
"use strict";
const fs = require("fs");
const readline = require("readline");

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
};
let ort, session;

async function load(request) {
  ort = require(request.package);
  ort.env.logLevel = "fatal";
  if (ort.env.wasm) ort.env.wasm.numThreads = request.threads;
  const options = { intraOpNumThreads: request.threads, logSeverityLevel: 4 };
  if (request.optimized) options.optimizedModelFilePath = request.optimized;
  const begin = performance.now();
  session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(request.file)), options);
  return { seconds: (performance.now() - begin) / 1000 };
}

function feeds(inputs) {
  const made = {};
  session.inputNames.forEach((name, i) => {
    const { path, type, shape } = inputs[i];
    const bytes = fs.readFileSync(path);
    const data = new ARRAYS[type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
    made[name] = new ort.Tensor(type, data, shape);
  });
  return made;
}

async function run(request) {
  if (request.inputs.length !== session.inputNames.length) {
    throw new Error(`the model takes ${session.inputNames.length} inputs; got ${request.inputs.length}.`);
  }
  const given = feeds(request.inputs);
  if (request.seconds !== undefined) {
    let least = Infinity;
    const end = performance.now() + 1000 * request.seconds;
    for (let i = 0; i < 3 || (performance.now() < end && i < 1000); i++) {
      const begin = performance.now();
      await session.run(given);
      least = Math.min(least, performance.now() - begin);
    }
    return { milliseconds: least };
  }
  const found = await session.run(given);
  const outputs = session.outputNames.map((name, i) => {
    const { data, dims, type } = found[name];
    const path = `${request.out}/output${i}.bin`;
    fs.writeFileSync(path, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    return { path, type, shape: dims };
  });
  return { outputs };
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let answer;
    try {
      const request = JSON.parse(line);
      answer = request.package ? await load(request) : await run(request);
    } catch (error) {
      answer = { error: String((error && error.message) || error).split("\n")[0] };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
})();
