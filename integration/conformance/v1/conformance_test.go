// Package conformance runs containerd's own snapshotter suite against a clip that listens on the
// unix socket in CLIP_SOCKET.
package conformance

import (
	"context"
	"os"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestClip(t *testing.T) {
	socket := os.Getenv("CLIP_SOCKET")
	if socket == "" {
		t.Fatal("CLIP_SOCKET must name the unix socket of a running clip")
	}
	open := func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		connection, err := grpc.Dial("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "clip"), connection.Close, nil
	}
	// The suite knows by this name what overlayfs can and cannot do.
	testsuite.SnapshotterSuite(t, "overlayfs", open)
}
