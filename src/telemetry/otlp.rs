//! Export of spans by OTLP: protobuf over HTTP, to a collector of the operator's (cargo feature `otlp`).

use super::trace::TraceContext;
use async_trait::async_trait;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use std::time::Duration;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// The variable that says where to: the collector's whole address, such as `http://127.0.0.1:4318/v1/traces`.
pub const ENDPOINT: &str = "TREFOIL_OTLP_ENDPOINT";
/// Longest time for one export.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends what is recorded until it is shut down.
pub struct Export(SdkTracerProvider);

impl Export {
    /// Exports to `endpoint` as this service, from a thread of its own.
    ///
    /// # Errors
    /// The address is none.
    pub fn start(endpoint: &str, service: &str) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::default())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_timeout(PATIENCE)
            .build()?;
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", service.to_owned()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ])
            .build();
        Ok(Self(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build()))
    }

    /// What takes this program's spans, those at level DEBUG too.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let tracer: SdkTracer = self.0.tracer("trefoil");
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_filter(Targets::new().with_target("trefoil", Level::DEBUG))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// Makes the span that a message names the parent of `span`. What is asked of others in `span` is asked by this; `None` if nothing is exported.
pub fn link(span: &Span, named: Option<TraceContext>) -> Option<TraceContext> {
    if let Some(named) = named {
        let (trace, parent, flags) = named.parts();
        let (trace, parent) = (TraceId::from_bytes(trace), SpanId::from_bytes(parent));
        let remote = SpanContext::new(trace, parent, TraceFlags::new(flags), true, TraceState::default());
        let _ = span.set_parent(Context::new().with_remote_span_context(remote));
    }
    let context = span.context();
    let own = context.span().span_context().clone();
    TraceContext::of(own.trace_id().to_bytes(), own.span_id().to_bytes(), own.trace_flags().to_u8())
}

/// The client that there is anyway. Blocking: exports have a thread of their own.
#[derive(Debug, Clone)]
struct Client(ureq::Agent);

impl Default for Client {
    fn default() -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        Self(config.build().into())
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let (parts, mut body) = self.0.run(Request::from_parts(parts, body.to_vec()))?.into_parts();
        Ok(Response::from_parts(parts, body.read_to_vec()?.into()))
    }
}
