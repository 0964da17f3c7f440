//! Every message that crosses a process: jobs, results, events, subjects, and the calls between worker and node.
//! docs/wire.md is the same for readers who write a backend in another language.

mod code;
mod encoding;
mod event;
mod ids;
mod job;
mod manage;
pub mod node;
mod payload;
mod peek;
mod result;
mod sign;
mod snapshot;
mod statement;
mod strict;
pub mod subject;

pub use code::{Disposition, ErrorCode};
pub use encoding::{Base64, Fixed};
pub use event::{Event, EventOutcome};
pub use ids::{Curve, InitiatorId, InvalidName, JobId, KeyId, Lane, Method, Op, SealKey};
pub use job::{Address, Authorisation, Job, JobError, JobHeaders, MAX_BODY_BYTES, SignedJob, VERSION};
pub use manage::{
    JobState, JobStatus, KeyEntry, KeyList, KeysBody, ListedState, MAX_LABEL_BYTES, MAX_LISTED, Manage,
    RecoveryCancelled, RegisterBody, WhichJobBody,
};
pub use payload::{
    ChangePasswordBody, Envelope, GenerateBody, KdfBody, KdfParams, OrderBody, Payload, PublicKeyBody, ReshareBody,
    Sealed, ValidateBody,
};
pub use result::{
    Attestations, Failure, JobResult, KeyResult, KeyState, OrderedState, Outcome, SignatureResult, StateResult,
};
pub use sign::{Batch, ItemBody, MAX_MESSAGE_BYTES, SignBody, SignInput};
pub use snapshot::{DurationCount, JobCount, NodesUp, Snapshot};
pub(crate) use statement::signing_bytes;
pub use statement::{
    Attestation, CancelStatement, Decision, DecisionKind, EpochState, EpochStatement, FIRST_EPOCH, StateStatement,
};
#[cfg(feature = "faults")]
pub(crate) use strict::{Json, parse as parse_strict};
