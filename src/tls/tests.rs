//! Real handshakes between this module and rustls clients, over in-memory pipes.

use crate::telemetry::labels::Label;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rustls::ClientConfig;
use rustls::HandshakeKind;
use rustls::NamedGroup;
use rustls::ProtocolVersion;
use rustls::RootCertStore;
use rustls::SupportedProtocolVersion;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::version::TLS12;
use rustls::version::TLS13;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::DuplexStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::MinVersion;
use super::Part;
use super::Protocol;
use super::TlsFault;
use super::certificate::FileGroup;
use super::certificate::KeyPair;
use super::certificate::KeySource;
use super::client::ClientAlpn;
use super::client::ClientSettings;
use super::client::ClientTls;
use super::client::ConnectFault;
use super::client::Roots;
use super::handshake::HandshakeFault;
use super::handshake::Negotiated;
use super::handshake::Sni;
use super::handshake::accept;
use super::server::CertificateKind;
use super::server::CertificateSource;
use super::server::ClientAuth;
use super::server::ReloadOutcome;
use super::server::ServerSettings;
use super::server::ServerTls;
use super::server::SessionKeys;
use super::server::watch;

type ClientStream = tokio_rustls::client::TlsStream<DuplexStream>;
type ServerStream = super::TlsStream<DuplexStream>;
type UpstreamStream = super::TlsStream<DuplexStream>;
type Accepted = Result<(ServerStream, Negotiated), HandshakeFault>;

#[tokio::test]
async fn both_versions_and_every_alpn_choice() {
    let site = Site::new();
    let tls = site.server(&["api.example"]);
    let cases: [(&[&str], Protocol); 4] = [
        (&["h2", "http/1.1"], Protocol::Http2),
        // The server prefers h2 whatever the client's order.
        (&["http/1.1", "h2"], Protocol::Http2),
        (&["http/1.1"], Protocol::Http1),
        (&[], Protocol::Http1),
    ];
    for version in [&TLS12, &TLS13] {
        for (offered, expected) in cases {
            let client = site.client(version, offered);
            let (mut client, (mut server, negotiated)) = shake(&tls, &client, "api.example").await;
            assert_eq!(negotiated, Negotiated { protocol: expected, sni: Sni::Matched, resumed: false });
            assert_eq!(client.get_ref().1.protocol_version(), Some(version.version));
            talk(&mut client, &mut server).await;
        }
    }
}

#[tokio::test]
async fn an_unknown_application_protocol_is_refused_with_its_alert() {
    let site = Site::new();
    let tls = site.server(&["api.example"]);
    let (client, server) = try_shake(&tls, &site.client(&TLS13, &["spdy/3"]), "api.example").await;
    assert_eq!(server.err(), Some(HandshakeFault::NoSharedProtocol));
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
    assert_eq!(rustls_error(&client.err().unwrap()), Some(alert));
}

#[tokio::test]
async fn tls13_alone_refuses_a_tls12_client_as_nothing_in_common() {
    let site = Site::new();
    let mut settings = site.settings(&["api.example"]);
    settings.min_version = MinVersion::Tls13;
    let tls = load(settings).unwrap();
    let (_, server) = try_shake(&tls, &site.client(&TLS12, &[]), "api.example").await;
    assert_eq!(server.as_ref().err(), Some(&HandshakeFault::NoSharedCipher));
    assert_eq!(server.err().unwrap().result().as_str(), "no_shared_cipher");
    shake(&tls, &site.client(&TLS13, &[]), "api.example").await;
}

#[tokio::test]
async fn key_exchange_is_hybrid_where_the_client_can() {
    assert_eq!(super::provider().kx_groups[0].name(), NamedGroup::X25519MLKEM768);
    let site = Site::new();
    let tls = site.server(&["api.example"]);
    let (client, _) = shake(&tls, &site.client(&TLS13, &[]), "api.example").await;
    let group = client.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);

    let mut provider = (*super::provider()).clone();
    provider.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    let client = site.client_with(provider, &TLS13, &[]);
    let (client, _) = shake(&tls, &client, "api.example").await;
    assert_eq!(client.get_ref().1.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
}

#[tokio::test]
async fn the_server_name_chooses_the_certificate() {
    let site = Site::new();
    let mut settings = site.settings(&["one.example"]);
    settings.certificates.push(site.source("wild", &["*.Two.example", "two.example"]));
    settings.certificates.push(site.source("exact", &["a.two.example"]));
    settings.certificates.push(site.source("by-address", &["192.0.2.7", "2001:db8::7", "seven.example"]));
    settings.certificates[3].default = true;
    let tls = load(settings).unwrap();

    let client = site.careless_client();
    for (asked, shown, sni) in [
        ("one.example", "one.example", Sni::Matched),
        ("ONE.Example", "one.example", Sni::Matched),
        ("two.example", "*.Two.example", Sni::Matched),
        ("b.two.example", "*.Two.example", Sni::Matched),
        ("a.two.example", "a.two.example", Sni::Matched),
        // A wildcard is one label deep, and not none.
        ("c.b.two.example", "seven.example", Sni::Unmatched),
        ("elsewhere.example", "seven.example", Sni::Unmatched),
        // Addresses are not sent as server names.
        ("198.51.100.1", "seven.example", Sni::Absent),
    ] {
        let (client, (_, negotiated)) = shake(&tls, &client, asked).await;
        assert!(shown_names(&client).contains(shown), "{asked}");
        assert_eq!(negotiated.sni, sni, "{asked}");
    }

    let names = tls.names();
    assert_eq!(names.dns(), ["one.example", "*.two.example", "two.example", "a.two.example", "seven.example"]);
    assert_eq!(names.ips(), ["192.0.2.7", "2001:db8::7"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    for host in ["One.example", "x.two.example", "192.0.2.7", "[2001:db8::7]", "2001:db8:0::7", "two.example."] {
        assert!(names.contains(host), "{host}");
    }
    for host in ["", ".", "x.one.example", ".two.example", "x.y.two.example", "192.0.2.8", "[192.0.2.8]", "example"] {
        assert!(!names.contains(host), "{host}");
    }
}

#[tokio::test]
async fn strict_server_names_refuse_instead_of_showing_the_default() {
    let site = Site::new();
    let mut settings = site.settings(&["one.example"]);
    settings.strict_sni = true;
    let tls = load(settings).unwrap();
    for version in [&TLS12, &TLS13] {
        let client = site.client(version, &[]);
        for asked in ["elsewhere.example", "192.0.2.1"] {
            let (_, server) = try_shake(&tls, &client, asked).await;
            assert_eq!(server.err(), Some(HandshakeFault::UnknownServerName));
        }
        shake(&tls, &client, "one.example").await;
    }
}

#[tokio::test]
async fn certificates_of_two_kinds_for_one_name_serve_each_client_its_kind() {
    let site = Site::new();
    let mut settings = site.settings(&["api.example"]);
    let (cert, key) = site.authority.issue(&Leaf { kind: &rcgen::PKCS_ED25519, ..Leaf::for_names(&["api.example"]) });
    settings.certificates.insert(0, site.source_of("ed25519", &cert, &key));
    let tls = load(settings).unwrap();

    let scheme_of = |client: &ClientStream| client.get_ref().1.peer_certificates().unwrap()[0].clone();
    let (both, _) = shake(&tls, &site.client(&TLS13, &[]), "api.example").await;
    let mut provider = (*super::provider()).clone();
    let verifiers = &mut provider.signature_verification_algorithms;
    let without_ed25519: Vec<_> =
        verifiers.mapping.iter().copied().filter(|(scheme, _)| *scheme != rustls::SignatureScheme::ED25519).collect();
    verifiers.mapping = Vec::leak(without_ed25519);
    let (no_ed25519, _) = shake(&tls, &site.client_with(provider, &TLS13, &[]), "api.example").await;
    assert_ne!(scheme_of(&both), scheme_of(&no_ed25519));
}

#[tokio::test]
async fn tickets_resume_in_both_versions_and_outlive_a_configuration_reload() {
    let site = Site::new();
    let keys = SessionKeys::new().unwrap();
    let before = ServerTls::load(site.settings(&["api.example"]), keys.clone(), now()).unwrap();
    let after = ServerTls::load(site.settings(&["api.example"]), keys.clone(), now()).unwrap();
    let other_process = site.server(&["api.example"]);
    for version in [&TLS12, &TLS13] {
        let client = site.client(version, &["h2"]);
        let kind = async |tls: &ServerTls| {
            let (mut client, (mut server, negotiated)) = shake(tls, &client, "api.example").await;
            // Tickets of 1.3 follow the handshake; reading anything takes them in.
            talk(&mut client, &mut server).await;
            let kind = client.get_ref().1.handshake_kind().unwrap();
            assert_eq!(negotiated.resumed, kind == HandshakeKind::Resumed);
            kind
        };
        assert_eq!(kind(&before).await, HandshakeKind::Full);
        assert_eq!(kind(&before).await, HandshakeKind::Resumed);
        assert_eq!(kind(&after).await, HandshakeKind::Resumed);
        keys.rotate_if_due();
        assert_eq!(kind(&after).await, HandshakeKind::Resumed);
        assert_eq!(kind(&other_process).await, HandshakeKind::Full);
    }
}

/// 1. A client gets tickets from a listener that asks for no certificate.
/// 2. It comes to a listener that requires one and shares the process's ticket keys.
/// 3. rustls would resume, and the listener would take the client for authenticated.
#[tokio::test]
async fn a_ticket_does_not_stand_in_for_a_client_certificate() {
    let site = Site::new();
    let keys = SessionKeys::new().unwrap();
    let open = ServerTls::load(site.settings(&["api.example"]), keys.clone(), now()).unwrap();
    let mut settings = site.settings(&["api.example"]);
    settings.client_auth = ClientAuth::Required { ca_pem_path: site.authority_file() };
    let closed = ServerTls::load(settings, keys, now()).unwrap();
    for version in [&TLS12, &TLS13] {
        let client = site.client(version, &[]);
        let (mut stream, (mut server, _)) = shake(&open, &client, "api.example").await;
        talk(&mut stream, &mut server).await;
        let (_, accepted) = try_shake(&closed, &client, "api.example").await;
        assert_eq!(accepted.err(), Some(HandshakeFault::BadClientCertificate));
    }
}

#[tokio::test]
async fn client_certificates_required_optional_and_revoked() {
    let site = Site::new();
    let stranger = Authority::new();
    let good = site.authority.issue(&Leaf { serial: 11, ..Leaf::for_client() });
    let revoked = site.authority.issue(&Leaf { serial: 12, ..Leaf::for_client() });
    let foreign = stranger.issue(&Leaf::for_client());
    let crl = site.write("crl.pem", &site.authority.revoke(&[12]));
    let ca_pem_path = site.authority_file();

    for version in [&TLS12, &TLS13] {
        for (required, crl, shown, expected) in [
            (true, None, None, Err(HandshakeFault::BadClientCertificate)),
            (true, None, Some(&foreign), Err(HandshakeFault::BadClientCertificate)),
            (true, None, Some(&good), Ok(())),
            (true, None, Some(&revoked), Ok(())),
            (true, Some(&crl), Some(&good), Ok(())),
            (true, Some(&crl), Some(&revoked), Err(HandshakeFault::BadClientCertificate)),
            (false, None, None, Ok(())),
            (false, None, Some(&good), Ok(())),
            (false, None, Some(&foreign), Err(HandshakeFault::BadClientCertificate)),
        ] {
            let mut settings = site.settings(&["api.example"]);
            settings.client_auth = match required {
                true => ClientAuth::Required { ca_pem_path: ca_pem_path.clone() },
                false => ClientAuth::Optional { ca_pem_path: ca_pem_path.clone() },
            };
            settings.crl = crl.cloned();
            let tls = load(settings).unwrap();
            let client = match shown {
                None => site.client(version, &[]),
                Some((cert, key)) => site.client_showing(version, cert, key),
            };
            for _ in 0..2 {
                let (client, accepted) = try_shake(&tls, &client, "api.example").await;
                assert_eq!(accepted.as_ref().map(drop).map_err(|fault| *fault), expected);
                // Each time in full: a resumed session would skip expiry and revocation.
                if let (Ok(mut client), Ok((mut server, negotiated))) = (client, accepted) {
                    assert!(!negotiated.resumed);
                    talk(&mut client, &mut server).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_new_revocation_list_is_taken_over_and_a_broken_one_is_not() {
    let site = Site::new();
    let (cert, key) = site.authority.issue(&Leaf { serial: 5, ..Leaf::for_client() });
    let crl = site.write("crl.pem", &site.authority.revoke(&[]));
    let mut settings = site.settings(&["api.example"]);
    settings.client_auth = ClientAuth::Required { ca_pem_path: site.authority_file() };
    settings.crl = Some(crl);
    let tls = load(settings).unwrap();
    let client = site.client_showing(&TLS13, &cert, &key);
    shake(&tls, &client, "api.example").await;

    site.write("crl.pem", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    let refused = ReloadOutcome { part: Part::ClientCa, result: Err(TlsFault::Invalid { part: Part::Crl }) };
    assert_eq!(tls.reload_changed(now()), [refused]);
    shake(&tls, &client, "api.example").await;

    site.write("crl.pem", &site.authority.revoke(&[5]));
    assert_eq!(tls.reload_changed(now()), [ReloadOutcome { part: Part::ClientCa, result: Ok(()) }]);
    let (_, accepted) = try_shake(&tls, &client, "api.example").await;
    assert_eq!(accepted.err(), Some(HandshakeFault::BadClientCertificate));
}

#[tokio::test]
async fn a_new_pair_is_shown_to_new_clients_while_open_connections_live_on() {
    let site = Site::new();
    let tls = site.server(&["api.example"]);
    let client = site.client(&TLS13, &[]);
    let (mut old_client, (mut old_server, _)) = shake(&tls, &client, "api.example").await;
    let shown_before = shown(&old_client);
    assert_eq!(tls.reload_changed(now()), []);

    let (cert, key) = site.authority.issue(&Leaf { not_after: (2048, 2, 29), ..Leaf::for_names(&["api.example"]) });
    site.write("api.example.crt", &cert);
    site.write("api.example.key", &key);
    let reloaded = ReloadOutcome { part: Part::Certificate("api.example".into()), result: Ok(()) };
    assert_eq!(tls.reload_changed(now()), [reloaded]);
    assert_eq!(tls.reload_changed(now()), []);
    assert_eq!(tls.not_after("api.example"), Some(2_466_547_200));
    assert_eq!(tls.not_after("unknown"), None);

    let client = site.client(&TLS13, &[]);
    let (new_client, _) = shake(&tls, &client, "api.example").await;
    assert_ne!(shown(&new_client), shown_before);
    talk(&mut old_client, &mut old_server).await;
}

#[tokio::test]
async fn a_broken_pair_is_refused_once_and_the_old_one_stays() {
    let site = Site::new();
    let mut settings = site.settings(&["api.example"]);
    settings.certificates.push(site.source("other", &["other.example"]));
    let tls = load(settings).unwrap();
    let client = site.client(&TLS13, &[]);
    let (first, _) = shake(&tls, &client, "api.example").await;

    let certificate = || Part::Certificate("api.example".into());
    let (_, good_key) = site.authority.issue(&Leaf::for_names(&["api.example"]));
    let (expired, expired_key) =
        site.authority.issue(&Leaf { not_after: (2001, 1, 1), ..Leaf::for_names(&["api.example"]) });
    let cut = &good_key[..good_key.len() / 2];
    for (file, text, fault) in [
        // Only one of the two files has been written so far.
        ("api.example.key", good_key.as_str(), TlsFault::KeyMismatch { part: certificate() }),
        ("api.example.key", cut, TlsFault::NotPem { part: Part::Key("api.example".into()) }),
        ("api.example.key", "", TlsFault::NoSection { part: Part::Key("api.example".into()) }),
        ("api.example.crt", "-----BEGIN", TlsFault::NoSection { part: certificate() }),
        (
            "api.example.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            TlsFault::NoSection { part: Part::Key("api.example".into()) },
        ),
        ("api.example.key", expired_key.as_str(), TlsFault::Invalid { part: certificate() }),
        ("api.example.crt", expired.as_str(), TlsFault::Expired { part: certificate() }),
    ] {
        site.write(file, text);
        let refused = ReloadOutcome { part: certificate(), result: Err(fault.clone()) };
        assert_eq!(tls.reload_changed(now()), [refused]);
        assert_eq!(tls.reload_changed(now()), [], "told once");
        // A fault tells what to do and quotes nothing.
        assert!(fault.to_string().contains("`api.example`") && !fault.to_string().contains("BEGIN"));
    }
    fs::remove_file(site.path("api.example.key")).unwrap();
    let part = Part::Key("api.example".into());
    let gone = ReloadOutcome {
        part: certificate(),
        result: Err(TlsFault::Unreadable { part, kind: io::ErrorKind::NotFound }),
    };
    assert_eq!(tls.reload_changed(now()), [gone]);
    assert_eq!(tls.reload_changed(now()), []);

    // The other certificate is not held up by the broken one.
    let (cert, key) = site.authority.issue(&Leaf::for_names(&["other.example"]));
    site.write("other.crt", &cert);
    site.write("other.key", &key);
    assert_eq!(tls.reload_changed(now()), [ReloadOutcome { part: Part::Certificate("other".into()), result: Ok(()) }]);

    let client = site.client(&TLS13, &[]);
    let (still, _) = shake(&tls, &client, "api.example").await;
    assert_eq!(shown(&still), shown(&first));

    let (cert, key) = site.authority.issue(&Leaf::for_names(&["api.example"]));
    site.write("api.example.crt", &cert);
    site.write("api.example.key", &key);
    assert_eq!(tls.reload_changed(now()), [ReloadOutcome { part: certificate(), result: Ok(()) }]);
}

/// An orchestrator mounts `tls.crt -> ..data/tls.crt` and swaps the link `..data`; the new files may carry any times.
#[test]
fn a_swapped_link_and_a_rewrite_with_kept_times_are_noticed() {
    let site = Site::new();
    let pairs = [0, 1].map(|_| site.authority.issue(&Leaf::for_names(&["api.example"])));
    let epoch = fs::FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1));
    for (directory, (cert, key)) in ["one", "two"].iter().zip(&pairs) {
        fs::create_dir(site.path(directory)).unwrap();
        for (name, text) in [("tls.crt", cert), ("tls.key", key)] {
            let path = site.write(&format!("{directory}/{name}"), text);
            fs::File::options().write(true).open(path).unwrap().set_times(epoch).unwrap();
        }
    }
    let swap = |target: &str| {
        std::os::unix::fs::symlink(target, site.path("..data_tmp")).unwrap();
        fs::rename(site.path("..data_tmp"), site.path("..data")).unwrap();
    };
    swap("one");
    let mut settings = site.settings(&[]);
    let (cert, key) = (site.path("..data/tls.crt"), site.path("..data/tls.key"));
    let kind = CertificateKind::Files { cert, key: KeySource::File(key) };
    settings.certificates.push(CertificateSource { name: "main".into(), kind, default: false });
    let tls = load(settings).unwrap();
    // A time at which the files are old, so that their times are believed.
    let later = now() + Duration::from_secs(60);
    assert_eq!(tls.reload_changed(later), []);

    swap("two");
    let reloaded = ReloadOutcome { part: Part::Certificate("main".into()), result: Ok(()) };
    assert_eq!(tls.reload_changed(later), std::slice::from_ref(&reloaded));
    assert_eq!(tls.reload_changed(later), []);

    // Same files, another time: looked at, found the same.
    let path = site.path("two/tls.crt");
    fs::File::options().write(true).open(path).unwrap().set_times(fs::FileTimes::new().set_modified(now())).unwrap();
    assert_eq!(tls.reload_changed(later), []);

    // Other contents under the old modification time.
    for (name, text) in [("two/tls.crt", &pairs[0].0), ("two/tls.key", &pairs[0].1)] {
        let path = site.write(name, text);
        fs::File::options().write(true).open(path).unwrap().set_times(epoch).unwrap();
    }
    assert_eq!(tls.reload_changed(later), [reloaded]);
}

/// Two writes of the same length within one step of the file system's clock leave the same times behind.
/// (Linux 6.13 and later keep finer times for files that are being watched; there this passes without our care, too.)
#[test]
fn a_second_write_within_one_clock_step_is_noticed() {
    let site = Site::new();
    let path = site.write("file", "0");
    let mut files = FileGroup::new(vec![(path, Part::ClientCa)]);
    for round in 1..100 {
        assert!(files.changed(now()).unwrap().is_some(), "{round}");
        assert!(files.changed(now()).unwrap().is_none(), "{round}");
        site.write("file", ["0", "1"][round % 2]);
    }
}

#[tokio::test]
async fn watching_reports_what_changed() {
    let site = Site::new();
    let tls = Arc::new(site.server(&["api.example"]));
    let (sender, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
    let watching = watch(tls.clone(), Duration::from_millis(20), move |outcome| drop(sender.send(outcome)));
    let watching = tokio::spawn(watching);
    // Written together, or the poll may look between the two.
    let (cert, key) =
        site.authority.issue(&Leaf { key: Some(site.key_of("api.example")), ..Leaf::for_names(&["api.example"]) });
    assert_eq!(key, fs::read_to_string(site.path("api.example.key")).unwrap());
    site.write_atomically("api.example.crt", &cert);
    let outcome = tokio::time::timeout(Duration::from_secs(10), outcomes.recv()).await.unwrap().unwrap();
    assert_eq!(outcome, ReloadOutcome { part: Part::Certificate("api.example".into()), result: Ok(()) });
    watching.abort();
}

#[tokio::test]
async fn a_key_given_as_text_survives_a_renewal_of_its_certificate() {
    let site = Site::new();
    let (cert, key) = site.authority.issue(&Leaf::for_names(&["api.example"]));
    let kind = CertificateKind::Files {
        cert: site.write("text.crt", &cert),
        key: KeySource::Pem(Zeroizing::new(key.clone().into_bytes())),
    };
    let mut settings = site.settings(&[]);
    settings.certificates.push(CertificateSource { name: "text".into(), kind, default: false });
    let tls = load(settings).unwrap();
    shake(&tls, &site.client(&TLS13, &[]), "api.example").await;

    let (renewed, _) = site.authority.issue(&Leaf { key: Some(key), ..Leaf::for_names(&["api.example"]) });
    site.write("text.crt", &renewed);
    let part = Part::Certificate("text".into());
    assert_eq!(tls.reload_changed(now()), [ReloadOutcome { part: part.clone(), result: Ok(()) }]);
    let (foreign, _) = site.authority.issue(&Leaf::for_names(&["api.example"]));
    site.write("text.crt", &foreign);
    let result = Err(TlsFault::KeyMismatch { part: part.clone() });
    assert_eq!(tls.reload_changed(now()), [ReloadOutcome { part, result }]);
}

#[test]
fn what_cannot_serve_is_refused_at_start() {
    let site = Site::new();
    assert_eq!(load(site.settings(&[])).err(), Some(TlsFault::NoCertificates));

    let (cert, key) = site.authority.issue(&Leaf::for_names(&["api.example"]));
    let part = || Part::Certificate("x".into());
    let key_part = || Part::Key("x".into());
    let pkcs8_encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let legacy_encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let unknown_kind = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (cert, key, fault) in [
        (cert.as_str(), pkcs8_encrypted.as_str(), TlsFault::KeyEncrypted { part: key_part() }),
        (&cert, legacy_encrypted, TlsFault::KeyEncrypted { part: key_part() }),
        (&cert, unknown_kind, TlsFault::KeyUnsupported { part: key_part() }),
        (&cert, &cert, TlsFault::NoSection { part: key_part() }),
        (&key, &key, TlsFault::NoSection { part: part() }),
        (&"x".repeat((4 << 20) + 1), &key, TlsFault::TooLarge { part: part() }),
    ] {
        let mut settings = site.settings(&[]);
        settings.certificates.push(site.source_of("x", cert, key));
        assert_eq!(load(settings).err(), Some(fault));
    }
    let mut settings = site.settings(&[]);
    let kind = CertificateKind::Files { cert: site.path(""), key: KeySource::File(site.path("")) };
    settings.certificates.push(CertificateSource { name: "x".into(), kind, default: false });
    let directory = TlsFault::Unreadable { part: part(), kind: io::ErrorKind::InvalidInput };
    assert_eq!(load(settings).err(), Some(directory));
}

#[tokio::test]
async fn the_self_signed_certificate_covers_this_machine_and_is_renewed() {
    let mut settings = Site::new().settings(&[]);
    let kind =
        CertificateKind::SelfSigned { names: vec!["lab.example".into(), "192.0.2.9".into(), "localhost".into()] };
    settings.certificates.push(CertificateSource { name: "lab".into(), kind, default: true });
    let tls = load(settings).unwrap();
    let names = tls.names();
    assert_eq!(names.dns(), ["localhost", "lab.example"]);
    assert_eq!(names.ips(), ["127.0.0.1", "::1", "192.0.2.9"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    let issued = super::certificate::epoch_seconds(now());
    let not_after = tls.not_after("lab").unwrap();
    assert!((issued + 30 * 86_400 - 60..=issued + 30 * 86_400).contains(&not_after), "{not_after}");

    // A client that is told to trust it does, by name and by address.
    let (client, _) = shake(&tls, &Site::new().careless_client(), "localhost").await;
    let mut roots = RootCertStore::empty();
    roots.add(shown(&client)).unwrap();
    let trusting = client_config(super::provider(), &TLS13, roots).with_no_client_auth();
    for name in ["localhost", "127.0.0.1", "::1", "lab.example", "192.0.2.9"] {
        shake(&tls, &Arc::new(trusting.clone()), name).await;
    }

    let in_days = |days: u64| now() + Duration::from_secs(days * 86_400);
    assert_eq!(tls.reload_changed(in_days(19)), []);
    assert_eq!(
        tls.reload_changed(in_days(21)),
        [ReloadOutcome { part: Part::Certificate("lab".into()), result: Ok(()) }]
    );
    assert!(tls.not_after("lab").unwrap() > not_after + 20 * 86_400);

    let mut settings = Site::new().settings(&[]);
    let kind = CertificateKind::SelfSigned { names: vec!["not a name\u{e9}".into()] };
    settings.certificates.push(CertificateSource { name: "lab".into(), kind, default: true });
    assert_eq!(load(settings).err(), Some(TlsFault::SelfSignedName { part: Part::Certificate("lab".into()) }));
}

#[tokio::test]
async fn a_stalled_client_is_dropped_at_the_deadline() {
    let site = Site::new();
    let tls = site.server(&["api.example"]);
    let hello = {
        let config = site.client(&TLS13, &[]);
        let mut connection =
            rustls::ClientConnection::new(config, ServerName::try_from("api.example").unwrap()).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    };
    for sent in [0, 1, 5, hello.len() / 2, hello.len() - 1, hello.len()] {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client.write_all(&hello[..sent]).await.unwrap();
        let fault = accept(&tls, server, Duration::from_millis(50)).await.err().unwrap();
        assert_eq!((fault, fault.result().as_str()), (HandshakeFault::TimedOut, "timeout"));
        // The connection is closed, not leaked.
        client.read_to_end(&mut Vec::new()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_not_tls_is_told_apart() {
    let site = Site::new();
    let tls = site.server(&["api.example"]);
    for (sent, expected, result) in [
        (&b"GET / HTTP/1.1\r\nhost: api.example\r\n\r\n"[..], HandshakeFault::NotTls, "bad_client"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HandshakeFault::NotTls, "bad_client"),
        (b"", HandshakeFault::Closed, "other"),
        (b"\x16\x03\x01", HandshakeFault::Closed, "other"),
        // A handshake record with something else than a hello in it.
        (b"\x16\x03\x01\x00\x04\x0e\x00\x00\x00", HandshakeFault::BadMessage, "bad_client"),
        (b"\x15\x03\x01\x00\x02\x02\x28", HandshakeFault::ClientAlert, "bad_client"),
    ] {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let fault = accept(&tls, server, Duration::from_secs(5)).await.err().unwrap();
        assert_eq!((fault, fault.result().as_str()), (expected, result), "{sent:?}");
    }
}

#[tokio::test]
async fn early_data_and_session_tables_are_off() {
    let site = Site::new();
    let tls = site.server(&["api.example"]);
    let config = tls.current().config();
    assert_eq!((config.max_early_data_size, config.send_half_rtt_data, config.require_ems), (0, false, true));
    assert!(!config.session_storage.can_cache() && config.cert_compressors.is_empty());
    let client = site.client(&TLS13, &[]);
    for _ in 0..2 {
        let (mut client, (mut server, _)) = shake(&tls, &client, "api.example").await;
        talk(&mut client, &mut server).await;
        assert!(!client.get_ref().1.is_early_data_accepted());
    }
}

/// The environment of a running process cannot be changed safely, so the handshakes run in a child.
#[test]
fn sslkeylogfile_has_no_effect() {
    let site = Site::new();
    let log = site.path("keys.log");
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tls::tests::tickets_resume_in_both_versions_and_outlive_a_configuration_reload"])
        .arg("tls::tests::upstreams_are_verified_and_resumed")
        .env("SSLKEYLOGFILE", &log)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("2 passed"), "{said}");
    assert!(!log.exists());
}

#[tokio::test]
async fn upstreams_are_verified_and_resumed() {
    let site = Site::new();
    let tls = site.server(&["api.example", "192.0.2.5"]);
    for min_version in [MinVersion::Tls12, MinVersion::Tls13] {
        let roots = Roots::File(site.authority_file());
        let upstream = upstream(ClientSettings { roots, min_version, ..plain() });
        for (round, host) in ["api.example", "192.0.2.5", "api.example"].into_iter().enumerate() {
            let (client, server) = connect(&upstream, &tls, host).await;
            let ((mut client, protocol), (mut server, negotiated)) = (client.unwrap(), server.unwrap());
            assert_eq!(protocol, Protocol::Http2);
            talk(&mut client, &mut server).await;
            assert_eq!(client.version(), ProtocolVersion::TLSv1_3);
            assert_eq!(negotiated.resumed, round == 2);
        }
        let (client, _) = connect(&upstream, &tls, "elsewhere.example").await;
        assert_eq!(client.err(), Some(ConnectFault::CertificateNotForName));
    }

    let stranger = site.write("stranger.pem", &Authority::new().certificate.pem());
    for roots in [Roots::WebPki, Roots::File(stranger)] {
        let upstream = upstream(ClientSettings { roots, ..plain() });
        let (client, server) = connect(&upstream, &tls, "api.example").await;
        assert_eq!(client.err(), Some(ConnectFault::CertificateUntrusted));
        assert_eq!(server.err(), Some(HandshakeFault::ClientAlert));
    }
    let roots = Roots::File(site.authority_file());
    let server_name = Some(ServerName::try_from("api.example").unwrap());
    let upstream = upstream(ClientSettings { roots, server_name, ..plain() });
    assert!(connect(&upstream, &tls, "10.0.0.1").await.0.is_ok());
}

#[tokio::test]
async fn upstreams_are_offered_the_configured_http_versions() {
    let site = Site::new();
    let tls = site.server(&["api.example"]);
    for (alpn, protocol) in [
        (ClientAlpn::Auto, Protocol::Http2),
        (ClientAlpn::Http1, Protocol::Http1),
        (ClientAlpn::Http2, Protocol::Http2),
    ] {
        let upstream = upstream(ClientSettings { roots: Roots::File(site.authority_file()), alpn, ..plain() });
        assert_eq!(connect(&upstream, &tls, "api.example").await.0.unwrap().1, protocol);
    }

    // Upstreams without h2, once silent about it and once refusing.
    let upstream =
        upstream(ClientSettings { roots: Roots::File(site.authority_file()), alpn: ClientAlpn::Http2, ..plain() });
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let mut config = (*tls.current().config()).clone();
        config.alpn_protocols = protocols;
        let (io, server_io) = tokio::io::duplex(1 << 16);
        let host = ServerName::try_from("api.example").unwrap();
        let (client, _) = tokio::join!(
            upstream.connect(io, &host, Duration::from_secs(5)),
            tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(server_io),
        );
        assert_eq!(client.err(), Some(ConnectFault::NoSharedProtocol));
    }
}

#[tokio::test]
async fn an_upstream_that_asks_gets_the_client_certificate() {
    let site = Site::new();
    let mut settings = site.settings(&["api.example"]);
    settings.client_auth = ClientAuth::Required { ca_pem_path: site.authority_file() };
    let tls = load(settings).unwrap();
    let (cert, key) = site.authority.issue(&Leaf::for_client());
    let cert = site.write("me.crt", &cert);
    for source in [KeySource::File(site.write("me.key", &key)), KeySource::Pem(Zeroizing::new(key.into_bytes()))] {
        let client_cert = Some((cert.clone(), source));
        let upstream = upstream(ClientSettings { roots: Roots::File(site.authority_file()), client_cert, ..plain() });
        connect(&upstream, &tls, "api.example").await.1.unwrap();
    }
    let (_, other) = site.authority.issue(&Leaf::for_client());
    let client_cert = Some((cert, KeySource::Pem(Zeroizing::new(other.into_bytes()))));
    let fault = ClientTls::load(ClientSettings { client_cert, ..plain() }, now()).err();
    assert_eq!(fault, Some(TlsFault::KeyMismatch { part: Part::UpstreamCertificate }));
}

#[tokio::test]
async fn a_stalled_upstream_is_dropped_at_the_deadline() {
    let upstream = upstream(plain());
    let (io, _server) = tokio::io::duplex(1 << 16);
    let host = ServerName::try_from("api.example").unwrap();
    assert_eq!(upstream.connect(io, &host, Duration::from_millis(50)).await.err(), Some(ConnectFault::TimedOut));
}

/// The walk through a certificate reads lengths that a file may lie about.
#[test]
fn a_damaged_certificate_is_refused_and_never_panics() {
    let authority = Authority::new();
    let leaf = Leaf::for_names(&["api.example", "*.api.example", "192.0.2.1", "2001:db8::1"]);
    let (cert, key) = authority.issue(&leaf);
    let part = Part::Certificate("x".into());
    let der = super::certificate::chain_from_pem(cert.as_bytes(), &part).unwrap().remove(0).to_vec();
    let key = super::certificate::key_from_pem(key.as_bytes(), &part).unwrap();
    let judge = |der: &[u8]| KeyPair::new(vec![CertificateDer::from(der.to_vec())], key.clone(), &part, now());
    assert!(judge(&der).is_ok());
    for cut in 0..der.len() {
        assert!(judge(&der[..cut]).is_err(), "{cut}");
    }
    for index in 0..der.len() {
        for bit in 0..8 {
            let mut damaged = der.clone();
            damaged[index] ^= 1 << bit;
            let _ = judge(&damaged);
        }
    }
}

#[test]
fn last_days_in_both_encodings() {
    let authority = Authority::new();
    let part = Part::Certificate("x".into());
    for (not_after, expected) in [
        ((2028, 2, 29), 1_835_395_200),
        ((2032, 3, 1), 1_961_712_000),
        ((2038, 1, 19), 2_147_472_000),
        ((2049, 12, 31), 2_524_521_600),
        // From here on the other encoding.
        ((2050, 1, 1), 2_524_608_000),
        ((2100, 3, 1), 4_107_542_400),
        ((9999, 12, 31), 253_402_214_400),
    ] {
        let (cert, key) = authority.issue(&Leaf { not_after, ..Leaf::for_names(&["x.example"]) });
        let chain = super::certificate::chain_from_pem(cert.as_bytes(), &part).unwrap();
        let key = super::certificate::key_from_pem(key.as_bytes(), &part).unwrap();
        let at = |seconds| KeyPair::new(chain.clone(), key.clone(), &part, UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(expected).unwrap().not_after, expected, "{not_after:?}");
        assert_eq!(at(expected + 1).err(), Some(TlsFault::Expired { part: part.clone() }));
    }
}

/// A directory with an authority and the files of certificates it issued.
struct Site {
    directory: PathBuf,
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("nullhop-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        Self { directory, authority: Authority::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn write_atomically(&self, name: &str, text: &str) {
        fs::rename(self.write("new", text), self.path(name)).unwrap();
    }

    fn authority_file(&self) -> PathBuf {
        self.write("authority.pem", &self.authority.certificate.pem())
    }

    fn key_of(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.key"))).unwrap()
    }

    /// A certificate for `names`, in files called after `name`.
    fn source(&self, name: &str, names: &[&str]) -> CertificateSource {
        let (cert, key) = self.authority.issue(&Leaf::for_names(names));
        self.source_of(name, &cert, &key)
    }

    fn source_of(&self, name: &str, cert: &str, key: &str) -> CertificateSource {
        let cert = self.write(&format!("{name}.crt"), cert);
        let key = KeySource::File(self.write(&format!("{name}.key"), key));
        CertificateSource { name: name.into(), kind: CertificateKind::Files { cert, key }, default: false }
    }

    /// A listener with one certificate for `names`, called after the first of them.
    fn settings(&self, names: &[&str]) -> ServerSettings {
        ServerSettings {
            min_version: MinVersion::Tls12,
            certificates: names.first().map(|first| self.source(first, names)).into_iter().collect(),
            client_auth: ClientAuth::None,
            crl: None,
            strict_sni: false,
        }
    }

    fn server(&self, names: &[&str]) -> ServerTls {
        load(self.settings(names)).unwrap()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.der().clone()).unwrap();
        roots
    }

    fn client(&self, version: &'static SupportedProtocolVersion, alpn: &[&str]) -> Arc<ClientConfig> {
        self.client_with((*super::provider()).clone(), version, alpn)
    }

    fn client_with(
        &self,
        provider: rustls::crypto::CryptoProvider,
        version: &'static SupportedProtocolVersion,
        alpn: &[&str],
    ) -> Arc<ClientConfig> {
        let mut config = client_config(Arc::new(provider), version, self.roots()).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    fn client_showing(&self, version: &'static SupportedProtocolVersion, cert: &str, key: &str) -> Arc<ClientConfig> {
        use rustls::pki_types::pem::PemObject;
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let builder = client_config(super::provider(), version, self.roots());
        Arc::new(builder.with_client_auth_cert(chain, key).unwrap())
    }

    /// A client that takes any certificate and never resumes, to look at what it is shown.
    fn careless_client(&self) -> Arc<ClientConfig> {
        let mut config = client_config(super::provider(), &TLS13, self.roots()).with_no_client_auth();
        config.dangerous().set_certificate_verifier(Arc::new(Careless));
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

struct Authority {
    certificate: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

/// What a test wants of a certificate.
struct Leaf<'a> {
    names: &'a [&'a str],
    usage: rcgen::ExtendedKeyUsagePurpose,
    kind: &'static rcgen::SignatureAlgorithm,
    serial: u64,
    not_after: (i32, u8, u8),
    /// An old key, PEM.
    key: Option<String>,
}

impl<'a> Leaf<'a> {
    fn for_names(names: &'a [&'a str]) -> Self {
        Self {
            names,
            usage: rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            kind: &rcgen::PKCS_ECDSA_P256_SHA256,
            serial: 1,
            not_after: (2090, 1, 1),
            key: None,
        }
    }

    fn for_client() -> Self {
        Self { usage: rcgen::ExtendedKeyUsagePurpose::ClientAuth, ..Self::for_names(&["client.example"]) }
    }
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        // Each its own name: with equal names a stranger would look like a forger.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self { certificate: rcgen::CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    /// Certificate and key, PEM.
    fn issue(&self, leaf: &Leaf<'_>) -> (String, String) {
        let names: Vec<String> = leaf.names.iter().map(|name| name.to_string()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        let (year, month, day) = leaf.not_after;
        params.not_before = rcgen::date_time_ymd(1999, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, month, day);
        params.serial_number = Some(leaf.serial.into());
        params.extended_key_usages = vec![leaf.usage.clone()];
        let key = match &leaf.key {
            Some(pem) => rcgen::KeyPair::from_pem(pem).unwrap(),
            None => rcgen::KeyPair::generate_for(leaf.kind).unwrap(),
        };
        (params.signed_by(&key, &self.certificate).unwrap().pem(), key.serialize_pem())
    }

    /// A revocation list, PEM.
    fn revoke(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|&serial| rcgen::RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            // Past: a late list still counts.
            next_update: rcgen::date_time_ymd(2020, 2, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.certificate).unwrap().pem().unwrap()
    }
}

fn load(settings: ServerSettings) -> Result<ServerTls, TlsFault> {
    ServerTls::load(settings, SessionKeys::new().unwrap(), now())
}

fn now() -> SystemTime {
    SystemTime::now()
}

fn client_config(
    provider: Arc<rustls::crypto::CryptoProvider>,
    version: &'static SupportedProtocolVersion,
    roots: RootCertStore,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
}

fn plain() -> ClientSettings {
    ClientSettings {
        roots: Roots::WebPki,
        min_version: MinVersion::Tls12,
        alpn: ClientAlpn::Auto,
        client_cert: None,
        server_name: None,
    }
}

fn upstream(settings: ClientSettings) -> ClientTls {
    ClientTls::load(settings, now()).unwrap()
}

async fn connect(
    upstream: &ClientTls,
    tls: &ServerTls,
    host: &str,
) -> (Result<(UpstreamStream, Protocol), ConnectFault>, Accepted) {
    let (io, server_io) = tokio::io::duplex(1 << 16);
    let host = ServerName::try_from(host.to_owned()).unwrap();
    let deadline = Duration::from_secs(30);
    tokio::join!(upstream.connect(io, &host, deadline), accept(tls, server_io, deadline))
}

async fn try_shake(tls: &ServerTls, client: &Arc<ClientConfig>, name: &str) -> (io::Result<ClientStream>, Accepted) {
    let (io, server_io) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio::join!(TlsConnector::from(client.clone()).connect(name, io), accept(tls, server_io, Duration::from_secs(30)),)
}

async fn shake(tls: &ServerTls, client: &Arc<ClientConfig>, name: &str) -> (ClientStream, (ServerStream, Negotiated)) {
    let (client, server) = try_shake(tls, client, name).await;
    (client.unwrap(), server.map_err(|fault| format!("{fault:?}")).unwrap())
}

/// A byte each way.
async fn talk<C: AsyncRead + AsyncWrite + Unpin>(client: &mut C, server: &mut ServerStream) {
    for _ in 0..2 {
        client.write_all(b"?").await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'?');
        server.write_all(b"!").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'!');
    }
}

fn shown(client: &ClientStream) -> CertificateDer<'static> {
    client.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// The names in the certificate that a client was shown, read from its bytes without the code under test.
fn shown_names(client: &ClientStream) -> String {
    String::from_utf8_lossy(&shown(client)).into_owned()
}

fn rustls_error(error: &io::Error) -> Option<rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>().cloned()
}

#[derive(Debug)]
struct Careless;

impl rustls::client::danger::ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        super::provider().signature_verification_algorithms.supported_schemes()
    }
}
