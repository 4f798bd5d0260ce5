// Package service is the skeleton that every binary of PairDB shares: a main that a test can start,
// configuration from the environment, logs, metrics, an operations server and a shutdown that is
// ordered and bounded. It never decides what a binary does.
//
// A binary is a Program value:
//
//	func main() { os.Exit(program().Main(context.Background(), os.Args[1:])) }
//
//	func program() *service.Program {
//		cfg := &config.Config{}
//		return &service.Program{
//			Name: "storage-node", Summary: "…", Config: cfg,
//			Run: func(ctx context.Context, rt *service.Runtime) error { … },
//		}
//	}
//
// # Configuration
//
// A configuration is a struct whose fields carry tags: `envconfig` is the key, `default` the value
// when the key is not set, `desc` what it does, `unit` what the number counts. A field without a
// default must say `required:"true"` or `optional:"true"`: a key that was left out never becomes 0
// by accident. Every binary knows the keys of all binaries (Keys), so a PAIRDB_ key that nobody
// knows is refused, with the nearest name.
//
// # Tracing
//
// A Program that names an OpenTracing exports spans if the environment asks for it: Runtime.Tracing. What
// exports is in package tracing, which this one does not know.
//
// # Shutdown
//
// A Group runs stages and stops them in the order in which they were added, each within its own
// limit. SIGTERM and SIGINT begin the shutdown; a second signal ends the process at once.
package service
