//! Patience with stores: a request that fails in a way that may pass is made again until it succeeds or the patience of the moment
//! is over. There is little of it while somebody waits (10 s), so that a wrong address is said soon, and more in the middle of a run
//! (150 s), so that a store may restart.
//!
//! Requests are watched between the stores' clients and the network, since the clients' own retries tell nothing and cannot change
//! their mind. Left to the clients is what only they see: bodies that break off, which they go on reading where they were, and errors
//! inside an answer that says 200.
//!
//! The first failure of a host is reported and so is the end of an outage, by
//! one line each; throttling, which fails now and then for hours, at most once a minute (`outage.rs`). A client panics at some values of
//! the environment, so these are looked at first (`environment.rs`).
//!
//! TLS is ring's and not AWS's library, the default of `object_store`: that one is C and assembly which compiles for longer than any
//! crate of ours. Certificates are checked by the system's authorities, or those of `SSL_CERT_FILE`; a test has an authority of its own.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use crate::store::environment;
use crate::store::outage;
use crate::store::redact::redact;

/// Until training begins, and in commands that look at something.
pub const AT_START: Duration = Duration::from_secs(10);

/// The most that may be asked for: requests carry the time at which they were signed, and stores refuse those of a quarter of an hour ago.
pub const MOST: Duration = Duration::from_secs(600);

/// In the middle of a run, at least.
pub const IN_A_RUN: Duration = Duration::from_secs(150);

/// A request that asks for little and has got no answer for so long is reported as one that failed, and waited for.
const SILENT: Duration = Duration::from_secs(5);

/// Every attempt has so long, also the last.
const LEAST: Duration = Duration::from_secs(1);

/// Pauses between attempts are twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// The most characters that are told of what a store answers: servers send whole documents.
const TOLD: usize = 200;

static PATIENCE_MS: AtomicU64 = AtomicU64::new(AT_START.as_millis() as u64);

/// Sets how long requests that fail are made again, in all stores of the process. Those that are under way follow.
pub fn set(patience: Duration) {
    PATIENCE_MS.store(patience.as_millis() as u64, Ordering::Relaxed);
}

/// Lets messages about patience name the setting that changes it. The first name stays.
pub fn set_name(name: &'static str) {
    // One that is there already stays.
    let _ = outage::NAME.set(name);
}

/// How long requests that fail are made again.
pub fn now() -> Duration {
    Duration::from_millis(PATIENCE_MS.load(Ordering::Relaxed))
}

/// The retries that are left to the stores' clients.
pub(crate) fn left_to_clients() -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LAST_PAUSE, base: 3.0 };
    RetryConfig { backoff, max_retries: 10, retry_timeout: IN_A_RUN }
}

/// Makes clients whose requests are made again with patience.
#[derive(Debug)]
pub(crate) struct Patient;

impl HttpConnector for Patient {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // Every client of the process speaks TLS by this provider; a second call finds it there.
        let _there_already = rustls::crypto::ring::default_provider().install_default();
        Ok(HttpClient::new(Service { client: ReqwestConnector::default().connect(options)? }))
    }
}

#[derive(Debug)]
struct Service {
    client: HttpClient,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let host = host(&request);
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let failed = match self.attempt(&request, &host, started).await {
                Ok(response) if passes(response.status().as_u16()) => refusal(response).await,
                // The clients would ask again and again, and say nothing.
                Ok(response) if response.status().as_u16() == 501 => {
                    return Err(HttpError::new(HttpErrorKind::Unknown, GivenUp(refusal(response).await)));
                }
                Ok(response) => {
                    outage::answered(&host);
                    return Ok(watched(response, host));
                }
                Err(error) if is_worth_another(&error, &request) => unanswered(&error, &request),
                Err(error) => return Err(error),
            };
            let lasts = outage::failed(&host, started, &failed, now());
            let left = now().saturating_sub(lasts);
            if left.is_zero() {
                let problem = format!("{failed}: given up after {} s{}", lasts.as_secs(), outage::name());
                return Err(HttpError::new(HttpErrorKind::Unknown, GivenUp(problem)));
            }
            tokio::time::sleep(shortened(pause).min(left)).await;
            pause = (2 * pause).min(LAST_PAUSE);
        }
    }
}

impl Service {
    /// One attempt. Where little has to be sent, an answer is not waited for longer than the patience of the moment; other requests have
    /// the client's own limits.
    async fn attempt(&self, request: &HttpRequest, host: &str, started: Instant) -> Result<HttpResponse, HttpError> {
        let answer = self.client.execute(request.clone());
        if !matches!(request.method().as_str(), "GET" | "HEAD" | "DELETE") {
            return answer.await;
        }
        let mut answer = std::pin::pin!(answer);
        let sent = Instant::now();
        loop {
            let left = now().saturating_sub(started.elapsed());
            if let Ok(answered) = tokio::time::timeout(left.clamp(LEAST, SILENT), &mut answer).await {
                return answered;
            }
            let silence = format!("no answer to {} for {:.0} s", request.method(), sent.elapsed().as_secs_f64());
            if started.elapsed() >= now() {
                let silence = std::io::Error::new(std::io::ErrorKind::TimedOut, silence);
                return Err(HttpError::new(HttpErrorKind::Timeout, silence));
            }
            outage::failed(host, started, &silence, now());
        }
    }
}

/// What a request failed by that was made again until patience was over.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct GivenUp(String);

/// Why a request was given up, where patience was over.
pub(crate) fn given_up(error: &object_store::Error) -> Option<String> {
    causes(error).find_map(|cause| cause.downcast_ref::<GivenUp>()).map(GivenUp::to_string)
}

/// An error and what caused it, from the outside in.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// What lies at the bottom of an error: "connection refused", and not that a request was not sent.
fn deepest(error: &HttpError) -> String {
    causes(error).last().map_or_else(|| error.to_string(), |cause| redact(&cause.to_string()))
}

/// Why there was no answer. Where a proxy is asked, it may be the one that is not there.
fn unanswered(error: &HttpError, request: &HttpRequest) -> String {
    let said = deepest(error);
    match environment::proxy(request.uri().scheme_str() == Some("https")) {
        Some(name) if error.kind() == HttpErrorKind::Connect => {
            format!("{said} (by the proxy of {name}, unless NO_PROXY says otherwise)")
        }
        _ => said,
    }
}

/// Scheme and address of the store, and nothing of a URL that could hold a secret.
fn host(request: &HttpRequest) -> String {
    let uri = request.uri();
    let address = uri.authority().map_or("", |authority| authority.as_str());
    let address = address.rsplit('@').next().unwrap_or(address);
    format!("{}://{address}", uri.scheme_str().unwrap_or("http"))
}

/// Whether another attempt may be answered otherwise: the store is busy, throttles, or starts. What it has not implemented stays so.
fn passes(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=599)
}

/// Whether a request that got no answer may be made again. One that was sent may have been carried out: of all that are made here
/// only those with a condition would then come to something else.
fn is_worth_another(error: &HttpError, request: &HttpRequest) -> bool {
    let has_condition =
        ["if-none-match", "x-goog-if-generation-match"].iter().any(|name| request.headers().contains_key(*name));
    match error.kind() {
        HttpErrorKind::Connect | HttpErrorKind::Request => true,
        HttpErrorKind::Timeout | HttpErrorKind::Interrupted => !has_condition,
        _ => false,
    }
}

/// What a store says when it refuses for now.
async fn refusal(response: HttpResponse) -> String {
    let status = response.status();
    let body = response.into_body().bytes().await.unwrap_or_default();
    let text = redact(&String::from_utf8_lossy(&body));
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(TOLD).collect();
    if line.is_empty() { format!("it answered {status}") } else { format!("it answered {status}: {line}") }
}

/// The answer, whose body is reported where it breaks off: the client goes on reading it by another request.
fn watched(response: HttpResponse, host: String) -> HttpResponse {
    response.map(|body| {
        HttpResponseBody::new(body.map_err(move |error| {
            outage::failed(&host, Instant::now(), &format!("an answer broke off: {}", deepest(&error)), now());
            error
        }))
    })
}

/// A random part of a pause, from half of it on: clients that failed together do not come back together.
fn shortened(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    pause.mul_f64(0.5 + 0.5 * random)
}
