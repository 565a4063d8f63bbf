import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.HexFormat;
import java.util.Map;
import java.util.TreeMap;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Publishes triggers: {topic, triggers: [{fields, document, keyed}]} on stdin; where each of them went, one JSON line each, on stdout.
 * Known from the documentation: the subject is {@code <topic>-value}, a document is canonical JSON, the record key is the run id.
 */
public final class Publish {
    private static final ObjectMapper JSON =
            new ObjectMapper().configure(SerializationFeature.ORDER_MAP_ENTRIES_BY_KEYS, true);
    private static final HttpClient HTTP = HttpClient.newHttpClient();
    private static final String REGISTRY = System.getenv("REGISTRY_URL");

    public static void main(String[] arguments) throws Exception {
        JsonNode order = JSON.readTree(System.in);
        String topic = order.get("topic").asText();
        String versions = REGISTRY + "/subjects/" + topic + "-value/versions";
        JsonNode latest = ask(HttpRequest.newBuilder(URI.create(versions + "/latest")).GET());
        String text = latest.get("schema").asText();
        String body = JSON.writeValueAsString(Map.of("schema", text));
        JsonNode registered =
                ask(HttpRequest.newBuilder(URI.create(versions))
                        .header("Content-Type", "application/vnd.schemaregistry.v1+json")
                        .POST(HttpRequest.BodyPublishers.ofString(body)));
        int id = registered.get("id").asInt();
        Schema schema = new Schema.Parser().parse(text);
        Map<String, Object> settings = Map.of("bootstrap.servers", System.getenv("KAFKA"), "client.id", "interop-java");
        try (var producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            for (JsonNode trigger : order.get("triggers")) {
                JsonNode fields = trigger.get("fields");
                String run = runOf(fields);
                byte[] key = trigger.get("keyed").asBoolean() ? run.getBytes(StandardCharsets.UTF_8) : null;
                byte[] value = framed(id, schema, fields, trigger.get("document"));
                var report = producer.send(new ProducerRecord<>(topic, key, value)).get();
                var line = new TreeMap<String, Object>();
                line.put("run_id", run);
                line.put("schema_id", id);
                line.put("known_id", latest.get("id").asInt());
                line.put("partition", report.partition());
                line.put("offset", report.offset());
                System.out.println(JSON.writeValueAsString(line));
            }
        }
    }

    private static String runOf(JsonNode fields) throws Exception {
        if (fields.hasNonNull("run_id")) {
            return fields.get("run_id").asText();
        }
        String tenant = fields.hasNonNull("tenant") ? fields.get("tenant").asText() : "default";
        return digest(tenant, fields.get("key").asText());
    }

    private static String digest(String... fields) throws Exception {
        MessageDigest hash = MessageDigest.getInstance("SHA-256");
        for (String field : fields) {
            byte[] bytes = field.getBytes(StandardCharsets.UTF_8);
            hash.update(ByteBuffer.allocate(4).putInt(bytes.length).array());
            hash.update(bytes);
        }
        return HexFormat.of().formatHex(hash.digest()).substring(0, 32);
    }

    private static byte[] framed(int id, Schema schema, JsonNode fields, JsonNode document) throws Exception {
        var record = new GenericRecordBuilder(schema);
        for (var field : fields.properties()) {
            record.set(field.getKey(), field.getValue().asText());
        }
        Object sorted = JSON.treeToValue(document, TreeMap.class);
        // As text first: Jackson's own UTF-8 writer escapes characters above U+FFFF, which are other bytes.
        byte[] payload = JSON.writeValueAsString(sorted).getBytes(StandardCharsets.UTF_8);
        record.set("payload", ByteBuffer.wrap(payload));
        var out = new ByteArrayOutputStream();
        out.write(0);
        out.write(ByteBuffer.allocate(4).putInt(id).array());
        BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(out, null);
        new GenericDatumWriter<GenericData.Record>(schema).write(record.build(), encoder);
        encoder.flush();
        return out.toByteArray();
    }

    private static JsonNode ask(HttpRequest.Builder request) throws Exception {
        HttpResponse<String> answer =
                HTTP.send(request.timeout(Duration.ofSeconds(20)).build(), HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != 200) {
            throw new IllegalStateException(answer.request().uri() + " answered " + answer.statusCode() + ": " + answer.body());
        }
        return JSON.readTree(answer.body());
    }
}
