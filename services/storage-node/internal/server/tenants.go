package server

import (
	"context"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// CreateTenant makes a tenant known.
func (a adminService) CreateTenant(ctx context.Context, r *adminv1.CreateTenantRequest) (*adminv1.CreateTenantResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	policy, err := policyFromProto(r.GetConflicts())
	if err != nil {
		return nil, err
	}
	t, err := b.Tenants.Create(ctx, r.GetName(), quotaFromProto(r.GetQuota()), policy)
	if err != nil {
		return nil, err
	}
	return &adminv1.CreateTenantResponse{Tenant: tenantToProto(t)}, nil
}

// UpdateTenant replaces a quota, a policy, or both.
func (a adminService) UpdateTenant(ctx context.Context, r *adminv1.UpdateTenantRequest) (*adminv1.UpdateTenantResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	policy, err := policyFromProto(r.GetConflicts())
	if err != nil {
		return nil, err
	}
	t, err := b.Tenants.Update(ctx, r.GetName(), quotaIfAny(r.GetQuota()), policy)
	if err != nil {
		return nil, err
	}
	return &adminv1.UpdateTenantResponse{Tenant: tenantToProto(t)}, nil
}

// DropTenant ends a tenant and removes what it stored.
func (a adminService) DropTenant(ctx context.Context, r *adminv1.DropTenantRequest) (*adminv1.DropTenantResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	t, err := b.Tenants.Drop(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.DropTenantResponse{Tenant: tenantToProto(t)}, nil
}

// ListTenants lists what is known.
func (a adminService) ListTenants(_ context.Context, r *adminv1.ListTenantsRequest) (*adminv1.ListTenantsResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	if err := b.Tenants.Damage(); err != nil {
		return nil, err
	}
	resp := &adminv1.ListTenantsResponse{Strict: b.Tenants.Strict()}
	for _, t := range b.Tenants.List(r.GetIncludeDropped()) {
		resp.Tenants = append(resp.Tenants, tenantToProto(t))
	}
	return resp, nil
}
