package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

func (a *app) clockCmd() *cobra.Command {
	show := a.clockVerb("show", func(ctx context.Context, client espmv1.ClockServiceClient) (clockAnswer, error) {
		return client.GetClock(ctx, &espmv1.GetClockRequest{})
	})
	show.Short = "Show whether espm believes the clock of its host"
	accept := a.clockVerb("accept", func(ctx context.Context, client espmv1.ClockServiceClient) (clockAnswer, error) {
		return client.AcceptClock(ctx, &espmv1.AcceptClockRequest{})
	})
	accept.Short = "Make espm believe the clock of its host as it is"
	accept.Long = `While the clock contradicts espm's own records, espm issues no certificate and signs no CRL. Compare the
clock with a time that you trust, and set it if it is wrong: espm then goes on by itself. If the clock is
right, this command makes espm go on. It works on the host of the daemon only, over the local socket.`
	return noun("clock", "Show and accept the clock of the daemon's host", show, accept)
}

// clockAnswer is implemented by the responses of all methods of the ClockService.
type clockAnswer interface {
	proto.Message
	GetClock() *espmv1.Clock
}

func (a *app) clockVerb(verb string, ask func(context.Context, espmv1.ClockServiceClient) (clockAnswer, error)) *cobra.Command {
	return &cobra.Command{
		Use:     verb,
		Example: "  espm clock " + verb,
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(func(conn *grpc.ClientConn) error {
				answer, err := ask(cmd.Context(), espmv1.NewClockServiceClient(conn))
				if err != nil {
					return err
				}
				return a.show(answer, func(w io.Writer) { clockTable(w, answer.GetClock()) })
			})
		},
	}
}

func clockTable(w io.Writer, c *espmv1.Clock) {
	believed := "yes"
	if c.GetDoubt() != "" {
		believed = "no: " + c.GetDoubt()
	}
	kernel := map[espmv1.ClockSynchronization]string{
		espmv1.ClockSynchronization_CLOCK_SYNCHRONIZATION_UNSPECIFIED:    "not known",
		espmv1.ClockSynchronization_CLOCK_SYNCHRONIZATION_SYNCHRONIZED:   "yes",
		espmv1.ClockSynchronization_CLOCK_SYNCHRONIZATION_UNSYNCHRONIZED: "no",
	}
	fmt.Fprintf(w, "now\t%s\nlatest record\t%s\nbelieved\t%s\nsynchronized\t%s\n",
		when(c.GetNowTime()), when(c.GetLatestRecordTime()), believed, kernel[c.GetSynchronization()])
}
