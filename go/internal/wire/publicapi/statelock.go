// Package publicapi holds the documents of the API for clients: programs inside effects, hci and the dashboard.
// Its types are not those of the agent protocol, also where names are equal.
//
// It must not know how documents travel nor what they cause.
package publicapi

import (
	"slices"
	"time"

	"hercules/internal/wire/agentapi"
)

// ID is a UUID in lower case with hyphens.
type ID = agentapi.ID

// StateLockAcquireRequest is the body of POST projects/:projectId/lock/:lockName.
type StateLockAcquireRequest struct {
	Description string `json:"description"`
	Exclusive   bool   `json:"exclusive"`

	Parent *ID `json:"parent"`

	IdempotencyKey *ID `json:"idempotencyKey"`
}

// StateLockAcquireResponse answers a StateLockAcquireRequest.
type StateLockAcquireResponse struct {
	Acquired *StateLockAcquiredResponse
	Blocked  *StateLockBlockedResponse
}

// StateLockAcquiredResponse is a lease. It is also the answer to a renewal.
type StateLockAcquiredResponse struct {
	LeaseID        ID        `json:"leaseId"`
	ExpirationTime time.Time `json:"expirationTime"`
}

// StateLockBlockedResponse names the leases that are in the way.
type StateLockBlockedResponse struct {
	BlockedByLeases agentapi.List[StateLockLease] `json:"blockedByLeases"`
}

// StateLockLease is a lease of someone.
type StateLockLease struct {
	ID             ID             `json:"id"`
	StartTime      time.Time      `json:"startTime"`
	ExpirationTime time.Time      `json:"expirationTime"`
	User           *SimpleAccount `json:"user"`
	Job            *SimpleJob     `json:"job"`
	Description    string         `json:"description"`
	Parent         *ID            `json:"parent"`
	Exclusive      bool           `json:"exclusive"`
}

// StateLockUpdateRequest is the body of POST lock-leases/:leaseId.
type StateLockUpdateRequest struct {
	Description *string `json:"description"`
}

// SimpleAccount is a user or an organization.
type SimpleAccount struct {
	ID          ID          `json:"id"`
	Name        string      `json:"name"`
	DisplayName string      `json:"displayName"`
	Typ         AccountType `json:"typ"`
	ImageURL    string      `json:"imageURL"`
	Site        SimpleSite  `json:"site"`
}

// AccountType is User or Organization.
type AccountType string

// The account types.
const (
	UserAccount         AccountType = "User"
	OrganizationAccount AccountType = "Organization"
)

// Valid says whether t is an account type.
func (t AccountType) Valid() bool { return t == UserAccount || t == OrganizationAccount }

// SimpleSite is a forge.
type SimpleSite struct {
	ID          ID     `json:"id"`
	Name        string `json:"name"`
	DisplayName string `json:"displayName"`
}

// SimpleProject is a project.
type SimpleProject struct {
	ID          ID            `json:"id"`
	Name        string        `json:"name"`
	Owner       SimpleAccount `json:"owner"`
	DisplayName string        `json:"displayName"`
	ImageURL    *string       `json:"imageURL"`
	IsPublic    bool          `json:"isPublic"`
}

// SimpleJob is a job.
type SimpleJob struct {
	ID      ID            `json:"id"`
	Project SimpleProject `json:"project"`
	Index   int64         `json:"index"`
	Status  JobStatus     `json:"status"`
	Phase   JobPhase      `json:"phase"`
}

// JobPhase is how far a job is.
type JobPhase string

// Valid says whether p is a phase.
func (p JobPhase) Valid() bool {
	return slices.Contains([]JobPhase{"Queued", "Evaluating", "Building", "Effects", "Done"}, p)
}

// JobStatus is how a job fares.
type JobStatus string

// Valid says whether s is a status.
func (s JobStatus) Valid() bool {
	return slices.Contains([]JobStatus{"Pending", "Failure", "Success"}, s)
}
