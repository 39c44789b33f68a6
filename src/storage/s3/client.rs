//! The client of one bucket: where it is, how requests are signed and sent.

use super::credentials;
use super::error::{Asked, S3Error};
use super::lock::Locks;
use super::settings::{Conditions, Digests, Pace, S3Settings, ServerTraits};
use super::wire::{Watched, Wire};
use aws_config::provider_config::ProviderConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where AWS itself answers for buckets whose region nobody named.
const DEFAULT_REGION: &str = "us-east-1";

/// A bucket, and what is known of its server.
pub struct Bucket {
    pub client: Client,
    pub name: String,
    /// Empty, or ending in a slash.
    pub prefix: String,
    pub asked: Asked,
    pub wire: Arc<Wire>,
    pub pace: Pace,
    pub locks: Option<Locks>,
    traits: Mutex<ServerTraits>,
    /// Cleared for a server that refuses the header.
    pub checksum_header: AtomicBool,
    /// Set while a thread finds out what the server makes of conditions.
    pub settling: AtomicBool,
}

impl Bucket {
    /// Makes the client. Nothing is asked of the server yet.
    pub async fn connect(settings: &S3Settings) -> Self {
        let endpoint = settings.endpoint.clone().or_else(|| {
            let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
            set("AWS_ENDPOINT_URL_S3").or_else(|| set("AWS_ENDPOINT_URL"))
        });
        let wire = Arc::new(Wire::new(settings.pace.stall, settings.limit_upload));
        let plain = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
        let plain = plain.build_https();
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
        // Credential providers of the default chain speak to their own endpoints, which are not the server.
        let provider =
            ProviderConfig::without_region().with_http_client(plain.clone()).with_timeout_config(timeouts.clone());
        let region = region(settings, &provider).await;
        let provider = provider.with_region(Some(region.clone()));
        let mut config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(region.clone())
            .credentials_provider(credentials::provider(&settings.credentials, &provider).await)
            .http_client(SharedHttpClient::new(Watched::new(plain, wire.clone())))
            // Retries, stalls and the whole of a request's time are this module's own business.
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(timeouts)
            // Servers that are not AWS refuse the client's own default checksums; each body is signed by its SHA-256.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        let mut traits = settings.server;
        match &endpoint {
            Some(url) => config = config.endpoint_url(url).force_path_style(settings.path_style),
            None => traits = ServerTraits { conditions: Conditions::Honoured, digests: Digests::Checked },
        }
        let asked = Asked {
            bucket: settings.bucket.clone(),
            region: region.to_string(),
            endpoint: endpoint.unwrap_or_else(|| format!("AWS S3 in {region}")),
        };
        let prefix = if settings.prefix.is_empty() { String::new() } else { format!("{}/", settings.prefix) };
        Self {
            client: Client::from_conf(config.build()),
            name: settings.bucket.clone(),
            prefix,
            asked,
            wire,
            pace: settings.pace,
            locks: settings.object_lock.clone().map(Locks::new),
            traits: Mutex::new(traits),
            checksum_header: AtomicBool::new(true),
            settling: AtomicBool::new(false),
        }
    }

    pub fn traits(&self) -> ServerTraits {
        *self.traits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what the server has shown.
    pub fn learn(&self, conditions: Option<Conditions>, digests: Option<Digests>) {
        let mut traits = self.traits.lock().unwrap_or_else(PoisonError::into_inner);
        traits.conditions = conditions.unwrap_or(traits.conditions);
        traits.digests = digests.unwrap_or(traits.digests);
    }

    /// The SHA-256 header's value, unless this server has refused it.
    pub fn checksum_wanted(&self) -> bool {
        self.checksum_header.load(Ordering::Relaxed)
    }

    /// An answer that cannot be true: not tried again.
    pub fn untrustworthy(&self, problem: impl Into<String>) -> S3Error {
        S3Error::Untrustworthy { problem: problem.into(), retryable: false }
    }
}

async fn region(settings: &S3Settings, provider: &ProviderConfig) -> Region {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(region) = settings.region.clone().or_else(|| set("AWS_REGION")).or_else(|| set("AWS_DEFAULT_REGION")) {
        return Region::new(region);
    }
    let profile = credentials::profile_region(&settings.credentials, provider).await;
    profile.unwrap_or_else(|| Region::from_static(DEFAULT_REGION))
}
