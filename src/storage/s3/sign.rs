//! The payload's hash in a signature, where it is known: the client would hash the whole body once more.

use aws_runtime::auth::SigV4OperationSigningConfig;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sigv4::http_request::SignableBody;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextMut;

/// Tells the signer the SHA-256 of the body that it signs.
#[derive(Debug)]
pub struct SignedAs {
    hex: String,
}

impl SignedAs {
    pub fn new(sha256: &[u8; 32]) -> Self {
        Self { hex: hex::encode(sha256) }
    }
}

impl Intercept for SignedAs {
    fn name(&self) -> &'static str {
        "SignedAs"
    }

    fn modify_before_signing(
        &self,
        _context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // Without a configuration there is no signature to be made.
        if let Some(mut signing) = config.load::<SigV4OperationSigningConfig>().cloned() {
            signing.signing_options.payload_override = Some(SignableBody::Precomputed(self.hex.clone()));
            config.interceptor_state().store_put(signing);
        }
        Ok(())
    }
}
