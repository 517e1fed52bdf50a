// Loads one network from three files, compares their answers and times them, on this processor.
import * as ort from "./ort/ort.wasm.min.mjs";

const FORMS = ["float", "int8", "packed"];
const HEADS = ["size, kB", "load, ms", "an image, ms", "right", "agrees with float", "off from int8"];
const SIDE = 8, SHOWN = 45, TURNS = 12, TURN = 40; // a turn lasts 40 ms
const status = document.getElementById("status");
const again = document.getElementById("again");

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that not every static server sends
ort.env.logLevel = "error";

const say = (text) => { status.textContent = text; };
const breathe = () => new Promise((done) => setTimeout(done));
const percent = (share) => `${(100 * share).toFixed(1)} %`;

async function bytesOf(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function load(form) {
  const bytes = await bytesOf(`${form}.onnx`);
  const begin = performance.now();
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return { form, size: bytes.length, session, loaded: performance.now() - begin };
}

async function answer(one, input) {
  const found = await one.session.run({ [one.session.inputNames[0]]: input });
  return found[one.session.outputNames[0]];
}

function classes({ data, dims: [count, width] }) {
  return Array.from({ length: count }, (_, i) => {
    const row = data.subarray(i * width, (i + 1) * width);
    return row.indexOf(Math.max(...row));
  });
}

const share = (first, second) => first.filter((value, i) => value === second[i]).length / first.length;
const apart = (first, second) => first.reduce((most, value, i) => Math.max(most, Math.abs(value - second[i])), 0);

async function time(models, image) {
  for (const one of models) one.least = Infinity;
  for (let turn = 0; turn < TURNS; turn++) {
    say(`Timing, ${turn + 1} of ${TURNS} …`);
    await breathe();
    for (const one of models) {
      const begin = performance.now();
      let runs = 0, now = begin;
      for (; now - begin < TURN; runs++, now = performance.now()) await answer(one, image);
      one.least = Math.min(one.least, (now - begin) / runs);
    }
  }
}

function show(models) {
  document.getElementById("rows").replaceChildren(...models.map((one) => {
    const row = document.createElement("tr");
    row.dataset.form = one.form;
    const head = row.appendChild(document.createElement("th"));
    head.scope = "row";
    head.textContent = one.form;
    const cells = [(one.size / 1000).toFixed(1), one.loaded.toFixed(0), one.least.toFixed(3),
      percent(one.right), percent(one.agrees), one.off.toPrecision(2)];
    cells.forEach((text, i) => {
      const cell = row.appendChild(document.createElement("td"));
      cell.dataset.head = HEADS[i];
      cell.textContent = text;
    });
    return row;
  }));
}

function draw(pixels, labels, found) {
  document.getElementById("images").replaceChildren(...pixels.slice(0, SHOWN).map((image, i) => {
    const item = document.createElement("li");
    const canvas = item.appendChild(document.createElement("canvas"));
    canvas.width = canvas.height = SIDE;
    const context = canvas.getContext("2d"), picture = context.createImageData(SIDE, SIDE);
    image.forEach((value, at) => picture.data.set([...Array(3).fill(255 - 15.9 * value), 255], 4 * at));
    context.putImageData(picture, 0, 0);
    item.appendChild(document.createElement("b")).textContent = found[i];
    item.classList.toggle("wrong", found[i] !== labels[i]);
    if (found[i] !== labels[i]) item.title = `it is a ${labels[i]}`;
    return item;
  }));
}

async function main() {
  const { pixels, labels, mean, deviation } = JSON.parse(new TextDecoder().decode(await bytesOf("images.json")));
  const values = Float32Array.from(pixels.flat(), (pixel) => (pixel / 16 - mean) / deviation);
  const all = new ort.Tensor("float32", values, [pixels.length, 1, SIDE, SIDE]);
  const first = new ort.Tensor("float32", values.slice(0, SIDE * SIDE), [1, 1, SIDE, SIDE]);
  const models = [];
  for (const form of FORMS) {
    say(`Loading ${form}.onnx …`);
    models.push(await load(form));
  }
  for (const one of models) {
    one.answers = (await answer(one, all)).data;
    one.classes = classes({ data: one.answers, dims: [pixels.length, one.answers.length / pixels.length] });
  }
  const [float, int8, packed] = models;
  for (const one of models) {
    one.right = share(one.classes, labels);
    one.agrees = share(one.classes, float.classes);
    one.off = apart(one.answers, int8.answers);
  }
  draw(pixels, labels, packed.classes);
  const measure = async () => {
    again.disabled = true;
    document.body.dataset.state = "timing";
    await time(models, first);
    show(models);
    say(`${pixels.length} images; the least of ${TURNS} means, one image at a time.`);
    document.body.dataset.state = "done";
    again.disabled = false;
  };
  again.addEventListener("click", measure);
  await measure();
}

main().catch((error) => {
  document.body.dataset.state = "failed";
  say(`This did not work: ${error.message || error}`);
});
