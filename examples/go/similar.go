// Tells how similar two pictures are, and the most probable class of each, over HTTP.
// Needs Go 1.18 or newer, no modules, and a daemon with a loaded model:
//
//	go run examples/go/similar.go a.jpg b.jpg
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
)

type answer struct {
	Results []struct {
		Status    struct{ Message string }
		Embedding struct{ Data []byte } // encoding/json decodes base64
		Classes   []struct {
			Label       string
			Probability float64
		}
	}
	Error struct{ Message string }
}

func post(route string, image []byte) (*answer, error) {
	address := os.Getenv("MULTIGRAIN_HTTP")
	if address == "" {
		address = "http://127.0.0.1:9464"
	}
	request, err := http.NewRequest("POST", address+route, bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/octet-stream")
	if token := os.Getenv("MULTIGRAIN_TOKEN"); token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var found answer
	if err := json.NewDecoder(response.Body).Decode(&found); err != nil {
		return nil, err
	}
	if found.Error.Message != "" {
		return nil, errors.New(found.Error.Message)
	}
	if found.Results[0].Status.Message != "" {
		return nil, errors.New(found.Results[0].Status.Message)
	}
	return &found, nil
}

func embed(path string) ([]float32, error) {
	image, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	classified, err := post("/v1/classify?top_k=1", image)
	if err != nil {
		return nil, err
	}
	best := classified.Results[0].Classes[0]
	fmt.Printf("%s: %s %.3f\n", path, best.Label, best.Probability)
	embedded, err := post("/v1/embed", image)
	if err != nil {
		return nil, err
	}
	data := embedded.Results[0].Embedding.Data
	vector := make([]float32, len(data)/4)
	return vector, binary.Read(bytes.NewReader(data), binary.LittleEndian, vector)
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: go run similar.go IMAGE IMAGE")
		os.Exit(2)
	}
	var vectors [2][]float32
	for i, path := range os.Args[1:] {
		vector, err := embed(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		vectors[i] = vector
	}
	// Vectors have length 1, so the inner product is the cosine.
	var sum float64
	for i, value := range vectors[0] {
		sum += float64(value * vectors[1][i])
	}
	fmt.Printf("similarity %.4f\n", sum)
}
