// What Go makes of bodies and durations: one JSON array [kind, input in base64] a line comes in,
// [kind, input, result, error] goes out. `go run vectors.go < inputs > vectors.jsonl`
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"
)

type ImageData []byte

type Inner struct {
	Name string   `json:"name"`
	N    int      `json:"n"`
	Req  []string `json:"req"`
}

type Outer struct {
	Model   string            `json:"model"`
	Context []int             `json:"context"`
	Stream  *bool             `json:"stream"`
	Images  []ImageData       `json:"images"`
	Options map[string]any    `json:"options"`
	Files   map[string]string `json:"files"`
	Input   any               `json:"input"`
	Inner   Inner             `json:"inner"`
}

func result(kind string, data []byte) (any, error) {
	if kind == "duration" {
		return time.ParseDuration(string(data))
	}
	var anything any
	var outer Outer
	var target any = &anything
	if kind == "struct" {
		target = &outer
	}
	err := json.NewDecoder(bytes.NewReader(data)).Decode(target)
	if errors.Is(err, io.EOF) {
		err = errors.New("missing request body")
	}
	return target, err
}

func main() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var line [2]string
		if in.Decode(&line) != nil {
			return
		}
		data, _ := base64.StdEncoding.DecodeString(line[1])
		made, err := result(line[0], data)
		if err != nil {
			out.Encode([]any{line[0], line[1], nil, err.Error()})
		} else {
			out.Encode([]any{line[0], line[1], made, nil})
		}
	}
}
