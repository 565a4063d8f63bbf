// Publishes triggers: {topic, triggers: [{fields, document, keyed}]} on stdin; where each of them went, one JSON line each, on stdout.
// Known from the documentation: the subject is `<topic>-value`, a document is canonical JSON, the record key is the run id.
import { createHash } from "node:crypto";
import kafkajs from "kafkajs";
import { input, kafka, line, registry } from "./clients.js";

function digest(...fields) {
  const hash = createHash("sha256");
  for (const field of fields) {
    const bytes = Buffer.from(field, "utf8");
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    hash.update(length).update(bytes);
  }
  return hash.digest("hex").slice(0, 32);
}

function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const pairs = Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
  return `{${pairs.join(",")}}`;
}

const { topic, triggers } = await input();
const id = await registry.getLatestSchemaId(`${topic}-value`);

const producer = kafka.producer({ createPartitioner: kafkajs.Partitioners.DefaultPartitioner, idempotent: true });
await producer.connect();
try {
  for (const { fields, document, keyed } of triggers) {
    const run = fields.run_id || digest(fields.tenant ?? "default", fields.key);
    const value = await registry.encode(id, { ...fields, payload: Buffer.from(canonical(document), "utf8") });
    const [report] = await producer.send({ topic, acks: -1, messages: [{ key: keyed ? run : null, value }] });
    line({ run_id: run, schema_id: id, partition: report.partition, offset: Number(report.baseOffset) });
  }
} finally {
  await producer.disconnect();
}
