//! The requests to a Pushgateway: put, delete and list groups, each within a budget of time.
//!
//! What may pass by itself (no connection, no reply in time, 408, 429, 5xx) is tried again until the budget is used
//! up; what will not (any other status, a certificate that nobody vouches for) is told at once. The user and password
//! in the URL are taken out of it first, so that no log and no error can show them; what a server says is not shown where
//! it repeats a secret.

use std::error::Error;
use std::fmt::{self, Debug, Formatter};
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::TryStreamExt;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, Request, Response, StatusCode, redirect};
use rustls::{AlertDescription, InvalidMessage};
use tokio::time::Instant;
use tokio_util::io::{StreamReader, SyncIoBridge};
use url::Url;

use super::credentials::{Authorization, Credentials, CredentialsError, Secrets};
use super::group::GroupingKey;
use super::list::{self, Group};
use super::tls::{self, TlsError, TlsSettings};
use crate::exposition::{Body, CONTENT_TYPE};

/// How a Pushgateway is reached. It holds a password if the URL does, so it cannot be shown.
pub struct PushgatewayConfig {
    /// The URL below which the server's API lies: http or https, with a path if the server has a route prefix, with
    /// user and password if it wants basic authentication.
    pub url: String,
    /// A file of PEM certificates that vouch for the server, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate (PEM), read again for each connection, and its key.
    pub client_certificate_file: Option<PathBuf>,
    /// The key of that certificate.
    pub client_key_file: Option<PathBuf>,
    /// The name that the server's certificate has to be for, in the place of the URL's host.
    pub server_name: Option<String>,
    /// A file with the user of basic authentication, read again for each try, as the two that follow.
    pub username_file: Option<PathBuf>,
    /// A file with the user's password.
    pub password_file: Option<PathBuf>,
    /// A file with a bearer token.
    pub bearer_token_file: Option<PathBuf>,
    /// How long one try may take, from connecting to the end of the reply.
    pub request_timeout: Duration,
    /// How long a request is tried at most, whatever budget its caller has.
    pub budget_max: Duration,
}

/// A Pushgateway: a client with its connections.
pub struct Pushgateway {
    client: reqwest::Client,
    /// What all requests share: the server's URL without user and password, and these as a header that is marked as
    /// secret.
    template: Request,
    /// The passwords in the URL and in that of the proxy, as they are and as they are sent.
    secrets_of_urls: Secrets,
    /// The proxy that requests go through, without user and password.
    proxy: Option<String>,
    credentials: Credentials,
    request_timeout: Duration,
    budget_max: Duration,
}

impl Pushgateway {
    /// A client for the server of `config`; nothing is sent yet. Proxies are taken from the usual environment
    /// variables (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, in either case). A proxy that itself speaks TLS in
    /// front of an http server is checked by `ca_file` alone.
    ///
    /// # Errors
    /// What cannot work: files that cannot be read among it, so that it is known before anything is measured.
    pub fn new(config: PushgatewayConfig) -> Result<Self, PushgatewayError> {
        let PushgatewayConfig {
            url,
            ca_file,
            client_certificate_file,
            client_key_file,
            server_name,
            username_file,
            password_file,
            bearer_token_file,
            request_timeout,
            budget_max,
        } = config;
        let url = parse_url(&url)?;
        let is_in_url = !url.username().is_empty() || url.password().is_some();
        let credentials = Credentials::new(username_file, password_file, bearer_token_file, is_in_url)?;
        credentials.read()?;
        let tls = tls::client_config(TlsSettings {
            ca_file,
            client_certificate_file,
            client_key_file,
            server_name,
            is_https: url.scheme() == "https",
        })?;
        let failed = |error: reqwest::Error| PushgatewayError::Client {
            why: deepest_cause(&error.without_url()),
        };
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::custom(follow_within_the_server))
            // All retries are ours, within the budget.
            .retry(reqwest::retry::never())
            .user_agent(concat!("lp-exporter/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(failed)?;
        // The builder of a request, unlike Request::new, moves user and password from the URL to a header.
        let template = client.get(url).build().map_err(failed)?;
        let mut secrets_of_urls = Secrets::of_header(template.headers().get(header::AUTHORIZATION));
        // As reqwest finds it.
        let proxies = Matcher::from_system();
        let proxy = template
            .url()
            .as_str()
            .parse()
            .ok()
            .and_then(|uri| proxies.intercept(&uri));
        if let Some(proxy) = &proxy {
            secrets_of_urls.extend(Secrets::of_header(proxy.basic_auth()));
        }
        Ok(Self {
            client,
            secrets_of_urls,
            proxy: proxy.map(|proxy| origin(&proxy.uri().to_string())),
            template,
            credentials,
            request_timeout,
            budget_max,
        })
    }

    /// The URL of the server, without user and password.
    #[must_use]
    pub fn url(&self) -> &str {
        self.template.url().as_str()
    }

    /// Whether the environment of this process sends its requests to the server through a proxy.
    #[must_use]
    pub fn is_proxied(&self) -> bool {
        self.proxy.is_some()
    }

    /// How long a request is tried at most, whatever budget its caller has.
    #[must_use]
    pub fn budget_max(&self) -> Duration {
        self.budget_max
    }

    /// Replaces the group of `key` by the metrics in `body`, within `budget`.
    ///
    /// It is safe to repeat when nobody knows whether the last try arrived: a PUT carries the whole group and leaves
    /// the server with just that, however often it is applied. Only one writer ever puts a group, so that a late copy of a
    /// try can at worst be the same numbers again. A POST would be as safe for its own names, and leave those of the last
    /// run that this one no longer has.
    pub async fn put(&self, key: &GroupingKey, body: &Body, budget: Duration) -> Result<(), PushError> {
        let mut request = self.request(Method::PUT, &key.path());
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        request
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        *request.body_mut() = Some(body.gzip().to_vec().into());
        self.send(request, budget, read_nothing).await
    }

    /// Deletes the group of `key`, within `budget`. A group that does not exist is deleted as well, so that this is as
    /// safe to repeat as a PUT.
    pub async fn delete(&self, key: &GroupingKey, budget: Duration) -> Result<(), PushError> {
        self.send(self.request(Method::DELETE, &key.path()), budget, read_nothing)
            .await
    }

    /// All groups of the server, within `budget`. The reply holds every metric of the server as well; it is read as a
    /// stream and not kept.
    pub async fn groups(&self, budget: Duration) -> Result<Vec<Group>, PushError> {
        self.send(self.request(Method::GET, "/api/v1/metrics"), budget, read_list)
            .await
    }

    /// A request for `path`, which begins with a slash and needs no encoding, below the server's URL.
    fn request(&self, method: Method, path: &str) -> Request {
        let mut request = self.template.try_clone().expect("a request without body");
        let path = format!("{}{path}", request.url().path().trim_end_matches('/'));
        request.url_mut().set_path(&path);
        *request.method_mut() = method;
        request
    }

    /// Tries `request` until `accept` takes a reply, something fails for good, or `budget` is used up.
    async fn send<Accepted, Reading: Future<Output = Result<Accepted, Cause>>>(
        &self,
        request: Request,
        budget: Duration,
        accept: fn(Response) -> Reading,
    ) -> Result<Accepted, PushError> {
        let begin = Instant::now();
        let budget = budget.min(self.budget_max);
        let mut delays = retry_delays();
        let mut tries = 0;
        loop {
            tries += 1;
            let remaining = budget.saturating_sub(begin.elapsed());
            let timeout = self.request_timeout.min(timeout_of_a_try(remaining));
            let cause = match self.try_once(&request, timeout, accept).await {
                Ok(accepted) => return Ok(accepted),
                Err(cause) => cause,
            };
            let left = budget.saturating_sub(begin.elapsed());
            // The last try is made in time, however long the delays have become; what the server asks for is not cut.
            let until_last_try = left.saturating_sub(LAST_TRY.min(budget / 4));
            let own_delay = delays.next().unwrap_or(LAST_RETRY_DELAY).min(until_last_try);
            // Not all that were told to wait are to come back at one moment, nor at once.
            let asked = cause.retry_after();
            let delay = asked.map_or(own_delay, |asked| asked + own_delay.min(left.saturating_sub(asked) / 2));
            if !cause.may_pass() || until_last_try.is_zero() || asked.is_some_and(|asked| asked >= left) {
                return Err(PushError {
                    method: request.method().to_string(),
                    url: request.url().to_string(),
                    proxy: self.proxy.clone(),
                    tries,
                    elapsed: begin.elapsed(),
                    cause,
                });
            }
            tracing::warn!(
                method = %request.method(), url = %request.url(), tries, cause = %cause,
                retry_in_seconds = delay.as_secs_f64(), "the Pushgateway did not take a request, trying again"
            );
            tokio::time::sleep(delay).await;
        }
    }

    async fn try_once<Accepted, Reading: Future<Output = Result<Accepted, Cause>>>(
        &self,
        request: &Request,
        timeout: Duration,
        accept: fn(Response) -> Reading,
    ) -> Result<Accepted, Cause> {
        let Authorization { header, mut secrets } = self
            .credentials
            .read()
            .map_err(|error| Cause::Credentials { why: error.to_string() })?;
        secrets.extend(self.secrets_of_urls.clone());
        let mut request = request.try_clone().expect("a body in memory");
        *request.timeout_mut() = Some(timeout);
        if let Some(header) = header {
            request.headers_mut().insert(header::AUTHORIZATION, header);
        }
        let response = self
            .client
            .execute(request)
            .await
            .map_err(|error| transport_failure(&error, timeout))?;
        // 202 is the answer to each DELETE, and to a PUT where the server does not check pushes.
        match response.status() {
            StatusCode::OK | StatusCode::ACCEPTED => accept(response).await.map_err(|cause| cause.without(&secrets)),
            _ => Err(refusal(response, &secrets).await),
        }
    }
}

/// At most half of what is left, so that one connection on which nobody answers does not take it all; but no less than a
/// busy server may need.
fn timeout_of_a_try(remaining: Duration) -> Duration {
    (remaining / 2).max(TRY_TIMEOUT_MIN).min(remaining)
}

impl Debug for Pushgateway {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pushgateway")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

/// Why there is no client for what is configured.
#[derive(Debug, thiserror::Error)]
pub enum PushgatewayError {
    /// The URL is none, or none for us. It is not shown, for it may hold a password.
    #[error(
        "the URL of the Pushgateway is not usable: {why}; set LP_EXPORTER_PUSHGATEWAY_URL, as in http://pushgateway:9091"
    )]
    Url {
        /// What is wrong with it.
        why: String,
    },
    /// There are no certificates to check the server by.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody knows who we are.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The HTTP client cannot be made.
    #[error("the HTTP client for the Pushgateway cannot be set up: {why}")]
    Client {
        /// Why not.
        why: String,
    },
}

/// A request that the Pushgateway did not take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "{method} {url}{} failed after {tries} {} in {:.1} s: {cause}; {}",
    .proxy.as_ref().map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default(), if *.tries == 1 { "try" } else { "tries" }, .elapsed.as_secs_f64(), .cause.what_to_do()
)]
pub struct PushError {
    /// The method of the request.
    pub method: String,
    /// Its URL, without user and password.
    pub url: String,
    /// The proxy on the way there, without user and password.
    pub proxy: Option<String>,
    /// How often it was tried.
    pub tries: u32,
    /// How long that took altogether.
    pub elapsed: Duration,
    /// Why the last try failed.
    pub cause: Cause,
}

/// Why one try failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// No whole reply came: no address, no connection, no answer in time, or one that was cut off.
    #[error("the server cannot be reached: {why}")]
    Unreachable {
        /// What happened.
        why: String,
    },
    /// The server's certificate does not stand up to the check.
    #[error("the server is not trusted: {why}")]
    Untrusted {
        /// What is wrong with the certificate.
        why: String,
    },
    /// The server answered a TLS handshake with something else.
    #[error("the server does not speak TLS: {why}")]
    NoTls {
        /// What came.
        why: String,
    },
    /// The server wants a certificate of ours, or another one.
    #[error("the server does not trust us: {why}")]
    NotTrusted {
        /// What it says.
        why: String,
    },
    /// What says who we are cannot be read. It may be just being replaced.
    #[error("{why}")]
    Credentials {
        /// The file, and what is wrong with it.
        why: String,
    },
    /// The server, or a proxy before it, cannot serve the request now: 408, 429 or 5xx.
    #[error("the server cannot serve now, with status {status}: {message}")]
    Busy {
        /// The status of the reply.
        status: u16,
        /// What the server says, cut to a bound.
        message: String,
        /// How long the server asks us to wait, cut to a bound.
        retry_after: Option<Duration>,
    },
    /// The server does not take the request, and will not take it later.
    #[error("the server refused with status {status}: {message}")]
    Refused {
        /// The status of the reply.
        status: u16,
        /// What the server says, cut to a bound.
        message: String,
    },
    /// What answered is no Pushgateway.
    #[error("the reply is not one of a Pushgateway: {why}")]
    NotAPushgateway {
        /// What is wrong with the reply.
        why: String,
    },
}

impl Cause {
    /// Whether another try may succeed.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Busy { .. } | Self::Credentials { .. }
        )
    }

    /// The same, unless the text of a stranger in it repeats a secret.
    fn without(self, secrets: &Secrets) -> Self {
        match self {
            Self::NotAPushgateway { why } => Self::NotAPushgateway {
                why: shown(why.as_bytes(), secrets),
            },
            Self::Unreachable { why } => Self::Unreachable {
                why: shown(why.as_bytes(), secrets),
            },
            other => other,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    fn what_to_do(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => {
                "check LP_EXPORTER_PUSHGATEWAY_URL, that the Pushgateway runs, and that a network policy or a proxy \
                 lets us reach it"
            }
            Self::Untrusted { .. } => {
                "renew it if it has expired; give the certificate of the server's CA by LP_EXPORTER_PUSHGATEWAY_CA_FILE, \
                 and call the server by the name in its certificate, or give that name by \
                 LP_EXPORTER_PUSHGATEWAY_SERVER_NAME"
            }
            Self::NotTrusted { .. } => {
                "give a certificate that the server takes by LP_EXPORTER_PUSHGATEWAY_CLIENT_CERTIFICATE_FILE and \
                 LP_EXPORTER_PUSHGATEWAY_CLIENT_KEY_FILE"
            }
            Self::NoTls { .. } => "write http:// in LP_EXPORTER_PUSHGATEWAY_URL if the Pushgateway has no TLS",
            Self::Credentials { .. } => "mount the file where the variable says that it is",
            Self::Busy { .. } => "see the log of the Pushgateway and of the proxies before it",
            Self::Refused { status: 400, message } if message.contains(HTTP_TO_HTTPS) => {
                "write https:// in LP_EXPORTER_PUSHGATEWAY_URL: the Pushgateway has TLS"
            }
            Self::Refused { status: 400, .. } => {
                "if another group holds the same series, or the same name with another type, delete that group or set \
                 LP_EXPORTER_GROUPING_LABELS to a label of this cluster's own"
            }
            Self::Refused { status: 401 | 403, .. } => {
                "check the user and the password, or the token: those in LP_EXPORTER_PUSHGATEWAY_URL, or in the files that \
                 LP_EXPORTER_PUSHGATEWAY_USERNAME_FILE and LP_EXPORTER_PUSHGATEWAY_PASSWORD_FILE, or \
                 LP_EXPORTER_PUSHGATEWAY_BEARER_TOKEN_FILE, name"
            }
            Self::Refused { status: 407, .. } => "check the user and the password of the proxy, in HTTP_PROXY",
            Self::Refused { status: 413, .. } => "raise the limit on bodies in the proxy before the Pushgateway",
            Self::Refused { .. } | Self::NotAPushgateway { .. } => {
                "check that LP_EXPORTER_PUSHGATEWAY_URL is the URL of a Pushgateway, with its route prefix if it has \
                 one"
            }
        }
    }
}

/// Long enough for a lost SYN or two, which are sent again after one and three seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a try may take at least, as far as the budget goes: where the server checks each push against all groups, that is a
/// second or two in a large cluster.
const TRY_TIMEOUT_MIN: Duration = Duration::from_secs(5);

/// Between the first tries. Each wait is lengthened by chance to up to twice itself, so that the workers of all nodes
/// do not come back at the same moment.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Between later tries: seldom enough for a server that starts, often enough to use a short budget.
const LAST_RETRY_DELAY: Duration = Duration::from_secs(3);

/// What is kept of a budget for one more try at its end.
const LAST_TRY: Duration = Duration::from_secs(1);

/// What a server may ask for at most: a budget of minutes must not be slept away by one reply.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// What a server in Go answers to a request without TLS where it expects TLS (net/http, server.go).
const HTTP_TO_HTTPS: &str = "Client sent an HTTP request to an HTTPS server";

/// So much of what a server says is shown.
const MESSAGE_MAX_BYTES: usize = 500;

/// A list of groups is read so far. A server with half a million series sends 120 MB.
const LIST_MAX_BYTES: u64 = 2 << 30;

/// Enough for a router that adds or takes a slash; a loop ends here.
const REDIRECTS_MAX: usize = 3;

fn retry_delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(FIRST_RETRY_DELAY)
        .with_max_delay(LAST_RETRY_DELAY)
        .with_jitter()
        .without_max_times()
        .build()
}

fn parse_url(text: &str) -> Result<Url, PushgatewayError> {
    let refuse = |why: &str| PushgatewayError::Url { why: why.to_owned() };
    if text.trim().is_empty() {
        return Err(refuse("it is empty"));
    }
    let unencoded = "the characters / \\ : @ ? # % in a user or a password have to be percent-encoded, as in %2F for /";
    let url = Url::parse(text).map_err(|error| {
        let hint = if text.contains('@') {
            format!(" ({unencoded})")
        } else {
            String::new()
        };
        refuse(&format!("{error}{hint}"))
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("it begins with neither http:// nor https://"));
    }
    // What is meant as a password may have ended the part of the URL that holds one, and would be shown as a path.
    if url.path().contains('@') {
        return Err(refuse(&format!("its path has an @ in it; {unencoded}")));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse(
            "it has a query or a fragment, which a Pushgateway does not know",
        ));
    }
    Ok(url)
}

/// Follows a redirect only to the same scheme, host and port: neither metrics nor a password go anywhere else. And
/// not 303, which asks for a GET, whose good reply would look like that of a PUT.
fn follow_within_the_server(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let is_same_server = attempt
        .previous()
        .first()
        .is_some_and(|first| first.origin() == attempt.url().origin());
    if is_same_server && attempt.status() != StatusCode::SEE_OTHER && attempt.previous().len() <= REDIRECTS_MAX {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

/// The status of a reply to a PUT or a DELETE says all.
async fn read_nothing(_: Response) -> Result<(), Cause> {
    Ok(())
}

/// Reads the list of groups on a thread that may block, because the JSON reader pulls.
async fn read_list(response: Response) -> Result<Vec<Group>, Cause> {
    let stream = Box::pin(
        response
            .bytes_stream()
            .map_err(|error| io::Error::other(error.without_url())),
    );
    let reader = BufReader::new(SyncIoBridge::new(StreamReader::new(stream)).take(LIST_MAX_BYTES));
    let reading = tokio::task::spawn_blocking(|| list::read_groups(reader)).await;
    let groups = reading.map_err(|error| Cause::NotAPushgateway { why: error.to_string() })?;
    groups.map_err(|error| match error.classify() {
        serde_json::error::Category::Io => Cause::Unreachable {
            why: deepest_cause(&error),
        },
        serde_json::error::Category::Eof => Cause::Unreachable {
            why: "the list of groups is cut off".to_owned(),
        },
        serde_json::error::Category::Syntax | serde_json::error::Category::Data => {
            Cause::NotAPushgateway { why: error.to_string() }
        }
    })
}

/// What a reply that is no success means.
async fn refusal(response: Response, secrets: &Secrets) -> Cause {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let location = response.headers().get(header::LOCATION).map(shown_location);
    let message = read_message(response, secrets).await;
    match (status, location) {
        (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS, _) => Cause::Busy {
            status: status.as_u16(),
            message,
            retry_after,
        },
        (status, _) if status.is_server_error() => Cause::Busy {
            status: status.as_u16(),
            message,
            retry_after,
        },
        (status, Some(location)) if status.is_redirection() => Cause::Refused {
            status: status.as_u16(),
            message: format!(
                "it points to {}, and only redirects within the same server are followed, {REDIRECTS_MAX} at most, that \
                 do not turn the request into a GET",
                shown(location.as_bytes(), secrets)
            ),
        },
        (status, _) => Cause::Refused {
            status: status.as_u16(),
            message,
        },
    }
}

/// The seconds of a Retry-After header, cut to a bound. It may hold a date instead; then our own delays must do.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// The server to which a reply points, without what may be secret: user, password and query.
fn shown_location(location: &HeaderValue) -> String {
    let url = location.to_str().ok().and_then(|text| Url::parse(text).ok());
    url.map_or_else(
        || "another path".to_owned(),
        |url| url.origin().ascii_serialization() + url.path(),
    )
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> String {
    Url::parse(url).map_or_else(
        |_| "of the environment".to_owned(),
        |url| url.origin().ascii_serialization(),
    )
}

/// The beginning of what the server says, in one line without control characters.
async fn read_message(mut response: Response, secrets: &Secrets) -> String {
    let mut bytes = Vec::new();
    // A secret that begins in what is shown is read to its end, to be found. A message that breaks off is better than none.
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MESSAGE_MAX_BYTES + secrets.longest_bytes() {
            break;
        }
    }
    let message = shown(&bytes, secrets);
    if message.is_empty() {
        "it says nothing".to_owned()
    } else {
        message
    }
}

/// Text from a stranger, cut to [`MESSAGE_MAX_BYTES`], as one line; nothing of it where it repeats a secret.
fn shown(bytes: &[u8], secrets: &Secrets) -> String {
    if secrets.are_in(bytes) {
        return "what it says holds our own password or token, and is not shown".to_owned();
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MESSAGE_MAX_BYTES)]);
    let spaced = text.replace(|character: char| character.is_control(), " ");
    let mut line = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    if bytes.len() > MESSAGE_MAX_BYTES {
        line.push_str("...");
    }
    line
}

/// What a request without a whole reply means.
fn transport_failure(error: &reqwest::Error, timeout: Duration) -> Cause {
    let tls = causes(error).find_map(tls_error);
    if let Some(rustls::Error::InvalidCertificate(_)) = tls {
        Cause::Untrusted {
            why: deepest_cause(error),
        }
    } else if let Some(rustls::Error::AlertReceived(alert)) = tls
        && is_about_our_certificate(*alert)
    {
        Cause::NotTrusted {
            why: format!("it answers with the alert {alert:?}"),
        }
    } else if let Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) = tls {
        Cause::NoTls {
            why: deepest_cause(error),
        }
    } else if error.is_timeout() && !error.is_connect() {
        Cause::Unreachable {
            why: format!("no reply within {:.1} s", timeout.as_secs_f64()),
        }
    } else {
        Cause::Unreachable {
            why: deepest_cause(error),
        }
    }
}

fn is_about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

/// The TLS error in `error`. I/O errors, in which it travels, may lie in each other, and are not in the chain of sources.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => tls_error(inner),
        None => error.downcast_ref(),
    }
}

/// An error and what lies below it.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The lowest of the causes, which is the one that people know: connection refused, no such host.
fn deepest_cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}
