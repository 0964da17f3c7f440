//! A worker that lies: it alters the jobs that it forwards to the nodes, after its own checks of them.
//!
//! With `TREFOIL_TAMPER` set, a job whose id ends in `-tamper-<n>` is forwarded with its n-th [`alterations`] made. So one process tries
//! all of them, side by side, and a field that is added to the wire format is altered without anybody adding it here. A job
//! whose id ends in `-tamper-swap` is forwarded as the last job of the same operation that was not.

use crate::wire::node::NodeRequest;
use crate::wire::{Authorisation, Fixed, Json, SignedJob, parse_strict};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// A job with one thing about it altered.
#[derive(Debug, Clone)]
pub struct Alteration {
    /// What was altered: the field's path, and how.
    pub what: String,
    /// The altered job.
    pub job: SignedJob,
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => s.serialize_unit(),
            Self::Bool(value) => s.serialize_bool(*value),
            Self::Unsigned(value) => s.serialize_u64(*value),
            Self::Signed(value) => s.serialize_i64(*value),
            Self::Float(value) => s.serialize_f64(*value),
            Self::Text(value) => s.serialize_str(value),
            Self::List(items) => {
                let mut list = s.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Self::Object(fields) => {
                let mut object = s.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(name, value)| object.serialize_entry(name, value))?;
                object.end()
            }
        }
    }
}

/// Every single alteration of a job: of each of its values, each field left out, a field added to each object and list, each of its
/// signatures and its authoriser altered or left out. Nothing else about the job changes, and what is altered stays plausible.
/// Empty for a body that is not JSON.
#[must_use]
pub fn alterations(job: &SignedJob) -> Vec<Alteration> {
    let Ok(body) = parse_strict(&job.body) else { return Vec::new() };
    let mut bodies = Vec::new();
    alter(&body, "", &mut |what, json| bodies.push((what, json)));
    let bodies = bodies.into_iter().filter_map(|(what, json)| {
        Some(Alteration { what, job: SignedJob { body: serde_json::to_vec(&json).ok()?, ..job.clone() } })
    });
    let signature = |signature| SignedJob { signature, ..job.clone() };
    let consent = |authorisation| SignedJob { authorisation, ..job.clone() };
    let mut all: Vec<_> = bodies.collect();
    let mut add = |what: &str, job| all.push(Alteration { what: what.to_owned(), job });
    add("signature: another first half", signature(flipped(job.signature, 3)));
    add("signature: another second half", signature(flipped(job.signature, 40)));
    add("signature: zero", signature(Fixed([0; 64])));
    if let Some(Authorisation { authoriser, signature }) = &job.authorisation {
        let other = nkeys::KeyPair::new_user().public_key().parse().unwrap_or_else(|_| authoriser.clone());
        add("authorisation: left out", consent(None));
        add(
            "authorisation.authoriser: another",
            consent(Some(Authorisation { authoriser: other, signature: *signature })),
        );
        let (authoriser, forged) = (authoriser.clone(), flipped(*signature, 40));
        add(
            "authorisation.signature: another",
            consent(Some(Authorisation { authoriser: authoriser.clone(), signature: forged })),
        );
        // The initiator's own signature is no consent.
        add(
            "authorisation.signature: the job's",
            consent(Some(Authorisation { authoriser, signature: job.signature })),
        );
    }
    all
}

fn flipped(Fixed(mut bytes): Fixed<64>, index: usize) -> Fixed<64> {
    if let Some(byte) = bytes.get_mut(index) {
        *byte ^= 1;
    }
    Fixed(bytes)
}

/// Hands every alteration of a value, as a copy of that value, to `emit`.
fn alter(value: &Json, path: &str, emit: &mut dyn FnMut(String, Json)) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Json::Null => emit(format!("{path}: something"), Json::Bool(false)),
        Json::Bool(value) => emit(format!("{path}: the opposite"), Json::Bool(!value)),
        Json::Unsigned(value) => emit(format!("{path}: another number"), Json::Unsigned(value.wrapping_add(1))),
        Json::Signed(value) => emit(format!("{path}: another number"), Json::Signed(value.wrapping_add(1))),
        Json::Float(value) => emit(format!("{path}: another number"), Json::Float(value + 1.0)),
        Json::Text(text) => emit(format!("{path}: another text"), Json::Text(another(text))),
        Json::List(items) => {
            emit(format!("{path}: a longer list"), Json::List([items.clone(), vec![Json::Unsigned(1)]].concat()));
            for (index, item) in items.iter().enumerate() {
                let mut without = items.clone();
                without.remove(index);
                emit(format!("{path}[{index}]: left out"), Json::List(without));
                alter(item, &format!("{path}[{index}]"), &mut |what, item| {
                    let mut items = items.clone();
                    items.splice(index..=index, [item]);
                    emit(what, Json::List(items));
                });
            }
        }
        Json::Object(fields) => {
            let mut more = fields.clone();
            more.push(("path".to_owned(), Json::Text("m/1".to_owned())));
            emit(below("path: one more field"), Json::Object(more));
            for (index, (name, field)) in fields.iter().enumerate() {
                let mut without = fields.clone();
                without.remove(index);
                emit(below(&format!("{name}: left out")), Json::Object(without));
                alter(field, &below(name), &mut |what, field| {
                    let mut fields = fields.clone();
                    fields.splice(index..=index, [(name.clone(), field)]);
                    emit(what, Json::Object(fields));
                });
            }
        }
    }
}

/// A text of the same kind: another key of the same type, the other curve, method, KDF or operation, another digit.
fn another(text: &str) -> String {
    const WORDS: &[(&str, &str)] = &[
        ("secp256k1", "ed25519"),
        ("mta", "default"),
        ("argon2id", "hkdf"),
        ("generate", "sign"),
        ("recover", "refresh"),
        ("freeze", "unfreeze"),
        ("validate-password", "validate-share"),
        ("public-key", "destroy"),
        ("change-password", "sign"),
        ("interactive", "bulk"),
    ];
    for (one, other) in WORDS {
        if text == *one {
            return (*other).to_owned();
        }
        if text == *other {
            return (*one).to_owned();
        }
    }
    if text.len() == 56 && text.starts_with('X') {
        return nkeys::XKey::new().public_key();
    }
    if text.len() == 56 && text.starts_with('U') {
        return nkeys::KeyPair::new_user().public_key();
    }
    // Somewhere in the middle, so that neither the padding of base64 nor the prefix of a box changes.
    let middle = text.char_indices().map(|(index, _)| index).nth(text.chars().count() / 2);
    let Some((index, old)) = middle.and_then(|index| Some((index, text.get(index..)?.chars().next()?))) else {
        return "AA==".to_owned();
    };
    let new = match old {
        '0' => '1',
        'a' => 'b',
        _ if old.is_ascii_digit() => '0',
        _ => 'a',
    };
    let mut text = text.to_owned();
    text.replace_range(index..index + old.len_utf8(), new.encode_utf8(&mut [0; 4]));
    text
}

/// The last untouched job of each operation that this process forwarded.
static FORWARDED: LazyLock<Option<Mutex<HashMap<String, SignedJob>>>> =
    LazyLock::new(|| std::env::var_os("TREFOIL_TAMPER").map(|_| Mutex::default()));

pub(super) fn forwarded(mut request: NodeRequest) -> NodeRequest {
    if let Some(known) = &*FORWARDED
        && let Some(job) = job_of(&mut request)
        && let Some((op, job_id)) = text_of(job, "op").zip(text_of(job, "jobId"))
    {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        match job_id.rsplit_once("-tamper-").map(|(_, how)| how) {
            None => drop(known.insert(op, job.clone())),
            Some("swap") => {
                if let Some(other) = known.get(&op) {
                    job.clone_from(other);
                }
            }
            Some(number) => {
                let altered = number.parse().ok().and_then(|n: usize| alterations(job).into_iter().nth(n));
                match altered {
                    Some(altered) => *job = altered.job,
                    None => tracing::error!(job_id, "there is no such alteration"),
                }
            }
        }
    }
    request
}

/// The job that a request forwards. One that is forgotten here goes through as it is, which the test of the tampering worker notices.
fn job_of(request: &mut NodeRequest) -> Option<&mut SignedJob> {
    match request {
        NodeRequest::SignOpen(open)
        | NodeRequest::FrostSign { open, .. }
        | NodeRequest::BatchOpen { open, .. }
        | NodeRequest::BatchFrost { open, .. } => Some(&mut open.job),
        NodeRequest::PasswordOpen(open) => Some(&mut open.job),
        NodeRequest::Source { job }
        | NodeRequest::GenerateOpen { job, .. }
        | NodeRequest::Order { job }
        | NodeRequest::Manage { job }
        | NodeRequest::KeyInfo { job } => Some(job),
        _ => None,
    }
}

fn text_of(job: &SignedJob, field: &str) -> Option<String> {
    let Ok(Json::Object(fields)) = parse_strict(&job.body) else { return None };
    fields.into_iter().find_map(|(name, value)| match value {
        Json::Text(text) if name == field => Some(text),
        _ => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_what_is_named_is_altered() {
        let body = br#"{"version":1,"op":"sign","nested":{"list":[true,null,"x"],"number":-2},"last":"00"}"#;
        assert_eq!(serde_json::to_vec(&parse_strict(body).unwrap()).unwrap(), body);
        let job = SignedJob { body: body.to_vec(), signature: Fixed([1; 64]), authorisation: None };
        let altered = alterations(&job);
        let find = |what: &str| {
            String::from_utf8(altered.iter().find(|one| one.what == what).unwrap().job.body.clone()).unwrap()
        };
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(find("op: another text"), text.replace("sign", "generate"));
        assert_eq!(find("nested.list[0]: the opposite"), text.replace("true", "false"));
        assert_eq!(find("nested.list[1]: left out"), text.replace("null,", ""));
        assert_eq!(find("nested.number: another number"), text.replace("-2", "-1"));
        assert_eq!(find("last: left out"), text.replace(r#","last":"00""#, ""));
        assert_eq!(altered.iter().filter(|one| one.job.signature != job.signature).count(), 3);
    }
}
