// Decodes every record of some topics: {topic: {partition: last offset}} on stdin; one JSON line per record on stdout.
// Long and bytes are written so that another language can compare them: bytes as {"bytes": hex}.
import { randomUUID } from "node:crypto";
import { input, kafka, line, registry } from "./clients.js";

const SILENCE_MS = 60_000;

function plain(value) {
  if (Buffer.isBuffer(value)) return { bytes: value.toString("hex") };
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, plain(item)]));
}

async function decoded(value) {
  if (value === null) return { tombstone: true };
  try {
    return { value: plain(await registry.decode(value)) };
  } catch (error) {
    return { error: String(error.message ?? error) };
  }
}

const wanted = await input();
const left = new Set();
for (const [topic, ends] of Object.entries(wanted)) {
  for (const partition of Object.keys(ends)) left.add(`${topic}/${partition}`);
}

const consumer = kafka.consumer({ groupId: `interop-node-${randomUUID()}`, readUncommitted: false });
await consumer.connect();
await consumer.subscribe({ topics: Object.keys(wanted), fromBeginning: true });
await new Promise((resolve, reject) => {
  const silence = setTimeout(() => reject(new Error(`not read to the end: ${[...left].join(" ")}`)), SILENCE_MS);
  consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
  consumer.run({
    autoCommit: false,
    eachMessage: async ({ topic, partition, message }) => {
      const end = wanted[topic][partition];
      const offset = Number(message.offset);
      if (end === undefined || offset > end) return;
      silence.refresh();
      const headers = Object.entries(message.headers ?? {}).length;
      line({ topic, partition, offset, headers, ...(await decoded(message.value)) });
      if (offset === end) left.delete(`${topic}/${partition}`);
      if (left.size === 0) {
        clearTimeout(silence);
        resolve();
      }
    },
  }).catch(reject);
}).finally(() => consumer.disconnect());
