// The Go programs that the integration tests and the demo run; scripts/setup builds them.
module clip.example/tools

go 1.21

require github.com/containerd/nerdctl v1.7.7
