// Package fulldisk checks on a real file system what a pod does while its disk fills and empties again, from
// outside. It never imports a service.
package fulldisk
