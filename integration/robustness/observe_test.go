package robustness

import (
	"context"
	"fmt"
	"net/http"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pairdb/pairdb/integration/check"
	"github.com/pairdb/pairdb/integration/cluster"
	"github.com/pairdb/pairdb/integration/traffic"
	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// members waits until each node knows that all are up.
func members(ctx context.Context, nodes []cluster.Node) error {
	for _, n := range nodes {
		c, err := client.New(n.Addr(), client.Options{})
		if err != nil {
			return err
		}
		defer c.Close()
		for up := 0; up < len(nodes); {
			if ctx.Err() != nil {
				return fmt.Errorf("%s knows %d of %d members", n.Name(), up, len(nodes))
			}
			up = 0
			r, err := c.Admin().Members(ctx, &adminv1.MembersRequest{})
			for _, m := range r.GetMembers() {
				if err == nil && m.GetDeclared().GetState() == clusterv1.MemberState_MEMBER_STATE_UP && m.GetLiveness() == clusterv1.Liveness_LIVENESS_ALIVE {
					up++
				}
			}
			wait(ctx, 50*time.Millisecond)
		}
	}
	return nil
}

// digest is the root of all that a node has.
func digest(ctx context.Context, n cluster.Node) (string, error) {
	conn, err := grpc.NewClient(n.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := replicav1.NewReplicaServiceClient(conn).Digest(ctx, &replicav1.DigestRequest{
		Peer: &replicav1.Peer{ClusterId: "pairdb", NodeId: n.Name()}, What: &movev1.Selection{Tenant: traffic.Tenant}, LeavesPerRange: 64,
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x of %d records", r.GetRoots(), r.GetRecords()), nil
}

// equal waits until nodes have the same, and returns how long it took.
func equal(ctx context.Context, nodes []cluster.Node, limit time.Duration) (time.Duration, error) {
	begun := time.Now()
	for {
		seen := make([]string, len(nodes))
		same := true
		for i, n := range nodes {
			d, err := digest(ctx, n)
			if err != nil {
				d, same = err.Error(), false
			}
			seen[i] = d
			same = same && d == seen[0]
		}
		took := time.Since(begun)
		switch {
		case same:
			return took, nil
		case took > limit:
			return took, fmt.Errorf("not the same within %s: %q", limit, seen)
		}
		wait(ctx, 200*time.Millisecond)
	}
}

// usage is what the processes of nodes hold, by node and binary.
func usage(ctx context.Context, nodes []cluster.Node) (map[string]check.Usage, error) {
	out := map[string]check.Usage{}
	for _, n := range nodes {
		for _, b := range cluster.Binaries {
			name := n.Name() + " " + string(b)
			u, err := scrape(ctx, n.OpsAddr(b))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			out[name] = u
		}
	}
	return out, nil
}

func scrape(ctx context.Context, addr string) (check.Usage, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return check.Usage{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return check.Usage{}, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return check.Usage{}, err
	}
	var missing error
	gauge := func(name string) float64 {
		f := families[name]
		if f.GetType() != dto.MetricType_GAUGE || len(f.GetMetric()) != 1 {
			missing = fmt.Errorf("there is no %s", name)
			return 0
		}
		return f.GetMetric()[0].GetGauge().GetValue()
	}
	u := check.Usage{Descriptors: gauge("process_open_fds"), Goroutines: gauge("go_goroutines"), Bytes: gauge("process_resident_memory_bytes")}
	return u, missing
}
