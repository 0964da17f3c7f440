//! A first look at a body: who claims to have sent it, and its job id. Works on bodies that are malformed further on,
//! so that even their refusal can be addressed.

use crate::wire::{Address, InitiatorId, JobId};
use core::fmt;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny};

/// What a body names, as far as it could be read. The first of duplicate keys counts; strict parsing refuses them.
#[derive(Debug, Default)]
pub struct Named {
    pub version: Option<u64>,
    pub initiator: Option<InitiatorId>,
    pub job_id: Option<JobId>,
}

impl Named {
    /// Where a result may go, if the body says so.
    pub fn address(self, refused: bool) -> Option<Address> {
        let (initiator, job_id) = self.initiator.zip(self.job_id)?;
        Some(Address { initiator, job_id, refused })
    }
}

/// Reads the top level up to its end or its first syntax error.
pub fn peek(body: &[u8]) -> Named {
    let mut named = Named::default();
    // What was read before an error stays in `named`, which is all that matters here.
    let _ = Peek(&mut named).deserialize(&mut serde_json::Deserializer::from_slice(body));
    named
}

struct Peek<'a>(&'a mut Named);

impl<'de> DeserializeSeed<'de> for Peek<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

/// A value that is kept if it is a string or an unsigned number.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Simple {
    Number(u64),
    Text(String),
    Other(IgnoredAny),
}

impl<'de> de::Visitor<'de> for Peek<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            if !matches!(key.as_str(), "version" | "initiator" | "jobId") {
                entries.next_value::<IgnoredAny>()?;
                continue;
            }
            match (key.as_str(), entries.next_value::<Simple>()?) {
                ("version", Simple::Number(version)) if self.0.version.is_none() => self.0.version = Some(version),
                ("initiator", Simple::Text(text)) if self.0.initiator.is_none() => self.0.initiator = text.parse().ok(),
                ("jobId", Simple::Text(text)) if self.0.job_id.is_none() => self.0.job_id = text.parse().ok(),
                _ => {}
            }
        }
        Ok(())
    }
}
