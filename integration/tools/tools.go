//go:build tools

// Package tools names the programs to build, so that go.mod and go.sum pin them.
package tools

import _ "github.com/containerd/nerdctl/cmd/nerdctl"
