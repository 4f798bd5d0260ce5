module github.com/pairdb/pairdb/integration

go 1.26.0

replace github.com/pairdb/pairdb/proto => ../proto

require (
	github.com/pairdb/pairdb/libs v0.0.0
	github.com/pairdb/pairdb/libs/client v0.0.0
	github.com/pairdb/pairdb/libs/localpod v0.0.0
	github.com/pairdb/pairdb/proto v0.0.0
)

require (
	github.com/cockroachdb/datadriven v1.0.3 // indirect
	github.com/pmezard/go-difflib v1.0.0 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
	go.uber.org/goleak v1.3.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261026165753-2ffab32bce7e // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
	pgregory.net/rapid v1.3.0 // indirect
)

replace github.com/pairdb/pairdb/libs => ../libs

replace github.com/pairdb/pairdb/libs/client => ../libs/client

replace github.com/pairdb/pairdb/libs/localpod => ../libs/localpod
