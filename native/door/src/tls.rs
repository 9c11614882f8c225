//! TLS as etcd does it: certificates from PEM, clients' certificates if a CA is named.

use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::options::Tls;
use crate::queue::Peer;
use crate::socket::Socket;

fn invalid(why: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.to_string())
}

fn certificates(pem: &[u8], what: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|why| invalid(format!("{what}: {why}")))?;
    if found.is_empty() {
        return Err(invalid(format!("{what}: there is no certificate in it")));
    }
    Ok(found)
}

/// What accepts TLS connections. The errors say which of the files is wrong.
pub(crate) fn acceptor(tls: &Tls) -> io::Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&tls.cert, "the certificate file")?;
    let key = PrivateKeyDer::from_pem_slice(&tls.key).map_err(|why| match why {
        pem::Error::NoItemsFound => invalid("the key file: there is no key in it"),
        why => invalid(format!("the key file: {why}")),
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(invalid)?;
    let builder = match &tls.trusted_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem, "the trusted CA file")? {
                roots.add(certificate).map_err(|why| invalid(format!("the trusted CA: {why}")))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(invalid)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|why| match why {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            invalid("the certificate and its key do not belong together")
        }
        why => invalid(format!("the certificate and its key: {why}")),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Notes the names in the certificate that the client showed.
pub(crate) fn names(stream: &TlsStream<Socket>, peer: &mut Peer) {
    let (_, session) = stream.get_ref();
    let Some(der) = session.peer_certificates().and_then(|chain| chain.first()) else { return };
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return };
    peer.common_name = certificate
        .subject()
        .iter_common_name()
        // Of several the last, as Go reads them.
        .last()
        .and_then(|name| name.as_str().ok())
        .map(str::to_owned);
    peer.certificate_names.extend(peer.common_name.clone());
    let Ok(Some(alternative)) = certificate.subject_alternative_name() else { return };
    for name in &alternative.value.general_names {
        let text = match name {
            GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
                (*text).to_owned()
            }
            GeneralName::IPAddress(bytes) => {
                match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                    (Ok(v4), _) => std::net::Ipv4Addr::from(v4).to_string(),
                    (_, Ok(v6)) => std::net::Ipv6Addr::from(v6).to_string(),
                    _ => continue,
                }
            }
            _ => continue,
        };
        peer.certificate_names.push(text);
    }
}
