package formats_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hercules/internal/formats"
)

// The documents of the protocol's test vectors are checked in package agentapi.

func TestErrorsForPeople(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		doc  any
		in   string
		want string
	}{
		{&formats.Secret{}, `{"kind":"Sekret","data":{}}`, `decoding *formats.Secret: .kind: "Sekret" where "Secret" should be`},
		{&formats.Secret{}, `{"kind":"Secret"}`, `decoding *formats.Secret: key "data" is missing`},
		{&formats.Secret{}, `{"kind":"Secret","data":[]}`, `decoding *formats.Secret: .data: an array where an object should be`},
		{&formats.Secret{}, `{"kind":"Secret","apiVersion":1,"data":{}}`, `decoding *formats.Secret: .apiVersion: this version is not supported; leave the key out`},
		{&formats.Secret{}, `{"kind":"Secret","data":{},"condition":{"and":["isTag",{"isBranch":1}]}}`, `decoding *formats.Secret: .condition.and[1].isBranch: a number where a string should be`},
		{&formats.Condition{}, `"isBranch"`, `decoding *formats.Condition: "isBranch" is no condition; "isDefaultBranch" and "isTag" are`},
		{&formats.Condition{}, `{"isTag":true}`, `decoding *formats.Condition: "isTag" is no condition`},
		{&formats.Condition{}, `{}`, `decoding *formats.Condition: a condition must have exactly one key, not 0`},
		{&formats.Condition{}, `null`, `decoding *formats.Condition: null where an object should be`},
		{&formats.Mountable{}, `{"source":"/x","readOnly":true}`, `decoding *formats.Mountable: key "condition" is missing`},
		{&formats.NixCache{}, `{"kind":"NixCache","storeURI":"x","signingKeys":null,"publicKeys":[]}`, `decoding *formats.NixCache: .signingKeys: null where an array should be`},
		{&formats.CachixCache{}, `{"kind":"NixCache","publicKeys":[]}`, `decoding *formats.CachixCache: .kind: "NixCache" where "CachixCache" should be`},
	} {
		err := formats.Unmarshal([]byte(tt.in), tt.doc)
		if err == nil {
			t.Errorf("%s: accepted", tt.in)
			continue
		}
		if d := cmp.Diff(tt.want, err.Error()); d != "" {
			t.Errorf("%s: %s", tt.in, d)
		}
	}
}

func TestConditionsThatSayNothingOrTooMuch(t *testing.T) {
	t.Parallel()
	name := "x"
	for _, c := range []formats.Condition{{}, {IsTag: true, IsDefaultBranch: true}, {IsOwner: &name, IsRepo: &name}, {And: &[]formats.Condition{{}}}} {
		if b, err := formats.Marshal(&c); err == nil {
			t.Errorf("%+v: %s", c, b)
		}
	}
}
