package rpc

import (
	"context"

	"github.com/espm-project/espm/internal/clock"
	espmv1 "github.com/espm-project/espm/proto/espm/v1"
)

// Clock reports whether espm trusts the host's clock, and lets an admin accept a doubted clock; see clock.Guard.
type Clock interface {
	State() clock.State
	Accept(ctx context.Context) error
}

type clocks struct {
	espmv1.UnimplementedClockServiceServer
	clock Clock
}

func (s *clocks) GetClock(context.Context, *espmv1.GetClockRequest) (*espmv1.GetClockResponse, error) {
	return &espmv1.GetClockResponse{Clock: toClock(s.clock.State())}, nil
}

func (s *clocks) AcceptClock(ctx context.Context, _ *espmv1.AcceptClockRequest) (*espmv1.AcceptClockResponse, error) {
	if err := s.clock.Accept(ctx); err != nil {
		return nil, err
	}
	return &espmv1.AcceptClockResponse{Clock: toClock(s.clock.State())}, nil
}

func toClock(s clock.State) *espmv1.Clock {
	out := &espmv1.Clock{NowTime: toTime(s.Now), LatestRecordTime: toTime(s.Latest)}
	if s.Doubt != nil {
		out.Doubt = s.Doubt.Error()
	}
	if kept, err := clock.Synchronized(); err == nil {
		out.Synchronization = espmv1.ClockSynchronization_CLOCK_SYNCHRONIZATION_UNSYNCHRONIZED
		if kept {
			out.Synchronization = espmv1.ClockSynchronization_CLOCK_SYNCHRONIZATION_SYNCHRONIZED
		}
	}
	return out
}
