//! schemas/ is generated from the Rust types. This test fails when they differ; `TREFOIL_UPDATE_SCHEMAS=1` rewrites them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use std::path::PathBuf;
use trefoil::seal::SecretsBody;
use trefoil::wire::{
    ChangePasswordBody, Envelope, Event, GenerateBody, JobResult, KeysBody, Op, OrderBody, PublicKeyBody, RegisterBody,
    ReshareBody, SignBody, Snapshot, ValidateBody, WhichJobBody,
};

fn schema<T: JsonSchema>(title: &str) -> Value {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    let mut schema = schema.to_value();
    schema["title"] = json!(title);
    schema
}

/// The envelope with its operation fixed.
fn job<P: JsonSchema>(op: Op) -> Value {
    let mut schema = schema::<Envelope<P>>(&format!("{op} job"));
    schema["properties"]["op"] = json!({ "const": op });
    schema["$defs"].as_object_mut().unwrap().remove("Op");
    schema
}

fn parameter(description: &str) -> Value {
    json!({ "description": description })
}

fn message(file: &str, headers: bool, summary: &str) -> Value {
    let mut message = json!({
        "contentType": "application/json",
        "summary": summary,
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": { "$ref": format!("./{file}.json") },
        },
    });
    if headers {
        message["headers"] = json!({ "$ref": "#/components/schemas/jobHeaders" });
    }
    message
}

fn asyncapi() -> Value {
    let key_id = parameter("32 lower-case hex digits");
    let initiator = parameter("The initiator's public NKEY, U…");
    let job_id = parameter("1 to 64 of A-Z a-z 0-9 _ -");
    let op = json!({ "enum": Op::ALL });
    let lane = json!({
        "description": "bulk for a job whose body names the lane bulk, job for every other",
        "enum": ["job", "bulk"],
        "default": "job",
    });
    let job_channel = |op: Op, summary: &str| {
        json!({
            "address": format!("mpc.{{lane}}.{op}.{{keyId}}"),
            "description": "Streams MPC_JOBS and MPC_BULK: work queues, discard new, capped per key.",
            "parameters": { "lane": lane, "keyId": key_id },
            "messages": { "job": message(&format!("job-{op}"), true, summary) },
        })
    };
    let operation = |action: &str, channel: &str, message: &str, summary: &str| {
        json!({
            "action": action,
            "summary": summary,
            "channel": { "$ref": format!("#/channels/{channel}") },
            "messages": [{ "$ref": format!("#/channels/{channel}/messages/{message}") }],
        })
    };
    let ask = |channel: &str, summary: &str| {
        let mut ask = operation("receive", channel, "job", summary);
        ask["reply"] = json!({
            "address": { "location": "$message.header#/reply", "description": "The inbox of the NATS request." },
            "channel": { "$ref": "#/channels/reply" },
            "messages": [{ "$ref": "#/channels/reply/messages/result" }],
        });
        ask
    };
    let request_channel = |op: Op, summary: &str| {
        json!({
            "address": format!("mpc.api.{op}"),
            "description": "NATS service endpoint.",
            "messages": { "job": message(&format!("job-{op}"), true, summary) },
        })
    };
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Trefoil",
            "version": "1",
            "description": "Jobs, results and events over NATS, seen from the service. docs/wire.md has the signing and sealing.",
            "license": { "name": "Apache-2.0" },
        },
        "defaultContentType": "application/json",
        "channels": {
            "generate": job_channel(Op::Generate, "Generate a key."),
            "sign": job_channel(Op::Sign, "Sign a digest or message."),
            "result": {
                "address": "mpc.result.{initiator}.{jobId}",
                "description": "Stream MPC_RESULTS: the one result of a job.",
                "parameters": { "initiator": initiator, "jobId": job_id },
                "messages": { "result": message("result", false, "What came of the job.") },
            },
            "refused": {
                "address": "mpc.result.{initiator}.{jobId}.refused",
                "description": "Stream MPC_RESULTS: what somebody sent in the initiator's name or in conflict with an earlier job.",
                "parameters": { "initiator": initiator, "jobId": job_id },
                "messages": { "result": message("result", false, "Why it was refused.") },
            },
            "event": {
                "address": "mpc.event.{op}.{initiator}",
                "description": "At most once, not stored.",
                "parameters": { "op": op, "initiator": initiator },
                "messages": { "event": message("event", false, "A step in a job's life.") },
            },
            "metrics": {
                "address": "mpc.metrics.{workerId}",
                "description": "At most once, not stored.",
                "parameters": { "workerId": parameter("The worker's name, as in events.") },
                "messages": { "snapshot": message("metrics", false, "What a worker counts.") },
            },
            "publicKey": job_channel(Op::PublicKey, "Return a key's public key."),
            "validatePassword": job_channel(Op::ValidatePassword, "Say whether a password opens a secretStore."),
            "validateShare": job_channel(Op::ValidateShare, "Say whether a password opens an encryptedShare."),
            "changePassword": job_channel(Op::ChangePassword, "Put a secretStore under another password."),
            "recover": job_channel(Op::Recover, "Give a key new shares under a new id; needs the authoriser's headers."),
            "refresh": job_channel(Op::Refresh, "Give a key new shares under the same id."),
            "freeze": job_channel(Op::Freeze, "Stop a key until it is unfrozen."),
            "unfreeze": job_channel(Op::Unfreeze, "Let a frozen key sign again."),
            "destroy": job_channel(Op::Destroy, "End a key for good; needs the authoriser's headers."),
            "keys": job_channel(Op::Keys, "List the initiator's keys."),
            "registerKey": job_channel(Op::RegisterKey, "Check a key's curve and public key, and label it."),
            "cancel": job_channel(Op::Cancel, "Keep a job from being started."),
            "jobStatus": job_channel(Op::JobStatus, "Tell how far a job is."),
            "cancelRecovery": job_channel(Op::CancelRecovery, "End a key's waiting recovery."),
            "keysRequest": request_channel(Op::Keys, "From where on, and how many."),
            "cancelRequest": request_channel(Op::Cancel, "Which job."),
            "jobStatusRequest": request_channel(Op::JobStatus, "Which job."),
            "publicKeyRequest": request_channel(Op::PublicKey, "Which key."),
            "validatePasswordRequest": request_channel(Op::ValidatePassword, "Password and secretStore."),
            "validateShareRequest": request_channel(Op::ValidateShare, "Password, secretStore and encryptedShare."),
            "reply": {
                "address": null,
                "messages": { "result": message("result", false, "The answer; it is not stored.") },
            },
        },
        "operations": {
            "generate": operation("receive", "generate", "job", "Generate a key."),
            "sign": operation("receive", "sign", "job", "Sign a digest or message."),
            "publicKey": operation("receive", "publicKey", "job", "Return a key's public key."),
            "validatePassword": operation("receive", "validatePassword", "job", "Say whether a password is right."),
            "validateShare": operation("receive", "validateShare", "job", "Say whether a share can be opened."),
            "changePassword": operation("receive", "changePassword", "job", "Put a secretStore under another password."),
            "recover": operation("receive", "recover", "job", "Give a key new shares under a new id."),
            "refresh": operation("receive", "refresh", "job", "Give a key new shares under the same id."),
            "freeze": operation("receive", "freeze", "job", "Stop a key until it is unfrozen."),
            "unfreeze": operation("receive", "unfreeze", "job", "Let a frozen key sign again."),
            "destroy": operation("receive", "destroy", "job", "End a key for good."),
            "keys": operation("receive", "keys", "job", "List the initiator's keys."),
            "registerKey": operation("receive", "registerKey", "job", "Check and label a key."),
            "cancel": operation("receive", "cancel", "job", "Keep a job from being started."),
            "jobStatus": operation("receive", "jobStatus", "job", "Tell how far a job is."),
            "cancelRecovery": operation("receive", "cancelRecovery", "job", "End a key's waiting recovery."),
            "keysRequest": ask("keysRequest", "List keys at once."),
            "cancelRequest": ask("cancelRequest", "Cancel a job at once, beside the queue."),
            "jobStatusRequest": ask("jobStatusRequest", "Tell at once how far a job is."),
            "publicKeyRequest": ask("publicKeyRequest", "Answer with a public key at once, outside the job queue."),
            "validatePasswordRequest": ask("validatePasswordRequest", "Say at once whether a password is right."),
            "validateShareRequest": ask("validateShareRequest", "Say at once whether a share can be opened."),
            "publishResult": operation("send", "result", "result", "Store the one result of a job."),
            "publishRefusal": operation("send", "refused", "result", "Say why something was refused."),
            "publishEvent": operation("send", "event", "event", "Tell what happens to a job."),
            "publishSnapshot": operation("send", "metrics", "snapshot", "Tell at a fixed interval what was counted."),
        },
        "components": {
            "schemas": {
                "jobHeaders": {
                    "type": "object",
                    "required": ["Trefoil-Version", "Trefoil-Signature"],
                    "properties": {
                        "Trefoil-Version": { "const": "1" },
                        "Trefoil-Signature": { "type": "string", "description": "Base64 of 64 bytes: Ed25519 by the initiator." },
                        "Trefoil-Authoriser": { "type": "string", "description": "recover, destroy: the recovery authoriser's public NKEY, U…" },
                        "Trefoil-Authoriser-Signature": { "type": "string", "description": "recover, destroy: base64 of 64 bytes: Ed25519 by the authoriser." },
                    },
                },
            },
        },
    })
}

#[test]
fn schemas_are_those_of_the_types() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let wanted = [
        ("job-generate", job::<GenerateBody>(Op::Generate)),
        ("job-sign", job::<SignBody>(Op::Sign)),
        ("job-public-key", job::<PublicKeyBody>(Op::PublicKey)),
        ("job-validate-password", job::<ValidateBody>(Op::ValidatePassword)),
        ("job-validate-share", job::<ValidateBody>(Op::ValidateShare)),
        ("job-change-password", job::<ChangePasswordBody>(Op::ChangePassword)),
        ("job-recover", job::<ReshareBody>(Op::Recover)),
        ("job-refresh", job::<ReshareBody>(Op::Refresh)),
        ("job-freeze", job::<OrderBody>(Op::Freeze)),
        ("job-unfreeze", job::<OrderBody>(Op::Unfreeze)),
        ("job-destroy", job::<OrderBody>(Op::Destroy)),
        ("job-keys", job::<KeysBody>(Op::Keys)),
        ("job-register-key", job::<RegisterBody>(Op::RegisterKey)),
        ("job-cancel", job::<WhichJobBody>(Op::Cancel)),
        ("job-job-status", job::<WhichJobBody>(Op::JobStatus)),
        ("job-cancel-recovery", job::<OrderBody>(Op::CancelRecovery)),
        ("secrets", schema::<SecretsBody>("sealed secrets")),
        ("result", schema::<JobResult>("result")),
        ("event", schema::<Event>("event")),
        ("metrics", schema::<Snapshot>("metrics")),
        ("asyncapi", asyncapi()),
    ];
    let update = std::env::var_os("TREFOIL_UPDATE_SCHEMAS").is_some();
    let mut differing = vec![];
    for (name, value) in wanted {
        let path = directory.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&value).unwrap() + "\n";
        if update {
            std::fs::write(&path, &text).unwrap();
        }
        if std::fs::read_to_string(&path).ok() != Some(text) {
            differing.push(path);
        }
    }
    assert!(differing.is_empty(), "run the test with TREFOIL_UPDATE_SCHEMAS=1 and review: {differing:?}");
}
