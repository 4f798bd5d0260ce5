// Command pause does nothing until it is told to end: it keeps the network of a pod while the containers
// of the pod come and go. It never starts anything.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
}
