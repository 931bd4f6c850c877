package agentapi

import "hercules/internal/wire/codec"

// The methods below are for code that uses encoding/json on a document: without them it would silently write
// documents that the other side refuses.

func (l List[T]) MarshalJSON() ([]byte, error)   { return codec.Marshal(&l) }
func (m Map[K, V]) MarshalJSON() ([]byte, error) { return codec.Marshal(&m) }

func (id ID) MarshalJSON() ([]byte, error)               { return codec.Marshal(&id) }
func (v AgentPayload) MarshalJSON() ([]byte, error)      { return codec.Marshal(&v) }
func (v ServicePayload) MarshalJSON() ([]byte, error)    { return codec.Marshal(&v) }
func (v TaskStatus) MarshalJSON() ([]byte, error)        { return codec.Marshal(&v) }
func (v Selector) MarshalJSON() ([]byte, error)          { return codec.Marshal(&v) }
func (v ImmutableInput) MarshalJSON() ([]byte, error)    { return codec.Marshal(&v) }
func (v EvaluateEvent) MarshalJSON() ([]byte, error)     { return codec.Marshal(&v) }
func (v SecretRef) MarshalJSON() ([]byte, error)         { return codec.Marshal(&v) }
func (v InputDeclaration) MarshalJSON() ([]byte, error)  { return codec.Marshal(&v) }
func (v BuildEvent) MarshalJSON() ([]byte, error)        { return codec.Marshal(&v) }
func (v LogMessage) MarshalJSON() ([]byte, error)        { return codec.Marshal(&v) }
func (e LogEntry) MarshalJSON() ([]byte, error)          { return codec.Marshal(&e) }
func (f LogField) MarshalJSON() ([]byte, error)          { return codec.Marshal(&f) }
func (e EvalBuild) MarshalJSON() ([]byte, error)         { return codec.Marshal(&e) }
func (v UnitValue) MarshalJSON() ([]byte, error)         { return codec.Marshal(&v) }
func (v EmptyRecord) MarshalJSON() ([]byte, error)       { return codec.Marshal(&v) }
func (f Frame[P]) MarshalJSON() ([]byte, error)          { return codec.Marshal(&f) }
func (id *ID) UnmarshalJSON(b []byte) error              { return codec.Unmarshal(b, id) }
func (v *AgentPayload) UnmarshalJSON(b []byte) error     { return codec.Unmarshal(b, v) }
func (v *ServicePayload) UnmarshalJSON(b []byte) error   { return codec.Unmarshal(b, v) }
func (v *TaskStatus) UnmarshalJSON(b []byte) error       { return codec.Unmarshal(b, v) }
func (v *Selector) UnmarshalJSON(b []byte) error         { return codec.Unmarshal(b, v) }
func (v *ImmutableInput) UnmarshalJSON(b []byte) error   { return codec.Unmarshal(b, v) }
func (v *EvaluateEvent) UnmarshalJSON(b []byte) error    { return codec.Unmarshal(b, v) }
func (v *SecretRef) UnmarshalJSON(b []byte) error        { return codec.Unmarshal(b, v) }
func (v *InputDeclaration) UnmarshalJSON(b []byte) error { return codec.Unmarshal(b, v) }
func (v *BuildEvent) UnmarshalJSON(b []byte) error       { return codec.Unmarshal(b, v) }
func (v *LogMessage) UnmarshalJSON(b []byte) error       { return codec.Unmarshal(b, v) }
func (e *LogEntry) UnmarshalJSON(b []byte) error         { return codec.Unmarshal(b, e) }
func (f *LogField) UnmarshalJSON(b []byte) error         { return codec.Unmarshal(b, f) }
func (e *EvalBuild) UnmarshalJSON(b []byte) error        { return codec.Unmarshal(b, e) }
func (v *UnitValue) UnmarshalJSON(b []byte) error        { return codec.Unmarshal(b, v) }
func (v *EmptyRecord) UnmarshalJSON(b []byte) error      { return codec.Unmarshal(b, v) }
func (f *Frame[P]) UnmarshalJSON(b []byte) error         { return codec.Unmarshal(b, f) }
