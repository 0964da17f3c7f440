//! The backend's side: build, sign and seal jobs, publish them, await their results and believe only what is proven.

pub mod address;
mod backend;
mod config;
mod job;
mod manage;
mod results;
mod shares;
pub mod verify;

pub use backend::{Backend, ClientError, SigningMaterial};
pub use config::ClientConfig;
pub use job::{BuildError, JobBuilder, SignedRequest, random_job_id};
pub use results::{Expected, Results};
pub use shares::{Making, NewKey, OldKey};
