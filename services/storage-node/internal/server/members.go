package server

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/wire"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// Members lists the cluster as this node knows it.
func (a adminService) Members(context.Context, *adminv1.MembersRequest) (*adminv1.MembersResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	return viewToProto(b.Members.View(), time.Now())
}

// WatchMembers sends the list now and after each change. A reader that is slow gets the newest list
// alone; nothing is kept for him.
func (a adminService) WatchMembers(_ *adminv1.WatchMembersRequest, stream grpc.ServerStreamingServer[adminv1.WatchMembersResponse]) error {
	b, err := a.s.backend()
	if err != nil {
		return err
	}
	out := sender[adminv1.WatchMembersResponse]{stream: stream, limit: a.s.stall}
	for {
		view := b.Members.View()
		msg, err := viewToProto(view, time.Now())
		if err != nil {
			return err
		}
		if err := out.send(&adminv1.WatchMembersResponse{View: msg}); err != nil {
			return err
		}
		select {
		case <-view.Changed:
		case <-stream.Context().Done(): // also of a node that stops
			return stream.Context().Err()
		}
	}
}

// RemoveMember declares a member removed.
func (a adminService) RemoveMember(ctx context.Context, r *adminv1.RemoveMemberRequest) (*adminv1.RemoveMemberResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	d, err := b.Members.Remove(ctx, r.GetNodeId(), r.GetReason())
	if err != nil {
		return nil, err
	}
	declared, err := wire.DeclarationToProto(d)
	if err != nil {
		return nil, err
	}
	return &adminv1.RemoveMemberResponse{Declared: declared}, nil
}
