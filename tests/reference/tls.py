"""Speaks TLS in front of a server that does not: decrypts what it is sent and passes it on.

    python tls.py HOST:PORT CERTIFICATE

Makes an authority of its own and by it a certificate for 127.0.0.1, writes the authority's certificate into the file CERTIFICATE, and prints the
port on which it then listens. Ends when its standard input does.
"""

import asyncio
import datetime
import ipaddress
import ssl
import sys
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def certificate(subject, issuer, key, signer, extensions):
    """The certificate of `key` for a day, signed by `signer`."""
    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(signer, hashes.SHA256())


def context(path):
    """A server's side of TLS; the authority behind it is written to `path`."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = certificate("tests", "tests", authority_key, authority_key, [x509.BasicConstraints(ca=True, path_length=0)])
    of_server = [
        x509.BasicConstraints(ca=False, path_length=None),
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
        x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]),
    ]
    server = certificate("127.0.0.1", "tests", key, authority_key, of_server)
    pem = serialization.Encoding.PEM
    with open(path, "wb") as file:
        file.write(authority.public_bytes(pem))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        file.write(server.public_bytes(pem))
        file.flush()
        tls.load_cert_chain(file.name)
    return tls


async def pump(reader, writer):
    """Passes on what comes until it ends."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def main():
    (host, port), path = sys.argv[1].rsplit(":", 1), sys.argv[2]

    async def relay(reader, writer):
        behind_reader, behind_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context(path))
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
