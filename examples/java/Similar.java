// Tells how similar two pictures are, and the most probable class of each, over HTTP.
// Needs Java 17 or newer, no packages, and a daemon with a loaded model:
//
//   java examples/java/Similar.java a.jpg b.jpg

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.Base64;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public class Similar {
  private static final HttpClient CLIENT = HttpClient.newHttpClient();

  public static void main(String[] paths) throws InterruptedException {
    if (paths.length != 2) {
      System.err.println("usage: java Similar.java IMAGE IMAGE");
      System.exit(2);
    }
    try {
      FloatBuffer a = embed(paths[0]);
      FloatBuffer b = embed(paths[1]);
      // Vectors have length 1, so the inner product is the cosine.
      double sum = 0;
      for (int i = 0; i < a.limit(); i++) {
        sum += a.get(i) * b.get(i);
      }
      System.out.printf("similarity %.4f%n", sum);
    } catch (IOException error) {
      System.err.println(error.getMessage());
      System.exit(1);
    }
  }

  private static FloatBuffer embed(String path) throws IOException, InterruptedException {
    String classified = post("/v1/classify?top_k=1", path);
    double probability = Double.parseDouble(field(classified, "probability", "[-0-9.eE]+"));
    System.out.printf("%s: %s %.3f%n", path, text(classified, "label"), probability);
    byte[] bytes = Base64.getDecoder().decode(text(post("/v1/embed", path), "data"));
    return ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
  }

  private static String post(String route, String path) throws IOException, InterruptedException {
    String address = System.getenv().getOrDefault("MULTIGRAIN_HTTP", "http://127.0.0.1:9464");
    HttpRequest.Builder request =
        HttpRequest.newBuilder(URI.create(address + route))
            .header("Content-Type", "application/octet-stream")
            .POST(HttpRequest.BodyPublishers.ofFile(Path.of(path)));
    String token = System.getenv("MULTIGRAIN_TOKEN");
    if (token != null) {
      request.header("Authorization", "Bearer " + token);
    }
    HttpResponse<String> response =
        CLIENT.send(request.build(), HttpResponse.BodyHandlers.ofString());
    String body = response.body();
    if (response.statusCode() != 200 || Integer.parseInt(field(body, "code", "[0-9]+")) != 0) {
      throw new IOException(text(body, "message"));
    }
    return body;
  }

  // The standard library has no JSON; a service would use one.
  private static String text(String json, String name) throws IOException {
    String found = field(json, name, "\"(?:[^\"\\\\]|\\\\.)*\"");
    return found.substring(1, found.length() - 1);
  }

  private static String field(String json, String name, String value) throws IOException {
    Matcher found = Pattern.compile("\"" + name + "\": (" + value + ")").matcher(json);
    if (!found.find()) {
      throw new IOException("no " + name + " in " + json);
    }
    return found.group(1);
  }
}
