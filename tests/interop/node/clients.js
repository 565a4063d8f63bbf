// The connections that both programs share: addresses come from the environment, nothing else is known.
import confluent from "@kafkajs/confluent-schema-registry";
import kafkajs from "kafkajs";
import lz4 from "lz4js";

const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = kafkajs;

const CONNECT_MS = 10_000;

// kafkajs brings gzip only; our topics are LZ4.
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async (encoder) => Buffer.from(lz4.compress(encoder.buffer)),
  decompress: async (buffer) => Buffer.from(lz4.decompress(buffer)),
});

export const kafka = new Kafka({
  clientId: "interop-node",
  brokers: [process.env.KAFKA],
  connectionTimeout: CONNECT_MS,
  logLevel: logLevel.ERROR,
});

export const registry = new confluent.SchemaRegistry({ host: process.env.REGISTRY_URL });

export async function input() {
  let text = "";
  for await (const chunk of process.stdin) text += chunk;
  return JSON.parse(text);
}

export function line(document) {
  process.stdout.write(JSON.stringify(document) + "\n");
}
