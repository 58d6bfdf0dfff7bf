// Command grpcenc is the ENC with which espm-enc is compared. grpcenc calls the daemon over gRPC, like any
// client of the API.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Println("Usage: grpcenc ADDRESS CERTNAME")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(address, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := espmv1.NewClassifierServiceClient(conn).ClassifyNode(ctx, &espmv1.ClassifyNodeRequest{Certname: name})
	if err != nil {
		return err
	}
	_, err = os.Stdout.WriteString(resp.GetYaml())
	return err
}
