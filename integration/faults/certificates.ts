/** Certificates for servers in tests: of `*.clip.test`, each its own authority, good for a hundred years. */

/** A key and a certificate, as PEM. */
export interface Certificate {
  key: string;
  cert: string;
}

/** Two that have nothing to do with each other. */
export const certificates: Readonly<Record<"first" | "second", Certificate>> = {
  first: {
    key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg0CUTkKXgrlB/lZ6F
Kb/MgG7gUjM3hNJy4scVwaWg89OhRANCAAT1IAC41M8BWnZ/+4zazrfFjmuzqhk7
formSFevAjQ+0g74Zh+pjgOtYdyUy3ZLZs6vZTEvn+IK7XjXEE+sbJ6Y
-----END PRIVATE KEY-----`,
    cert: `-----BEGIN CERTIFICATE-----
MIIBnDCCAUGgAwIBAgIUH/RcQ1niWBFnIBo4JuuTidTRJWYwCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLY2xpcCB0ZXN0IGEwIBcNMjYxMTIxMTQ1OTAyWhgPMjEyNjEw
MjgxNDU5MDJaMBYxFDASBgNVBAMMC2NsaXAgdGVzdCBhMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAE9SAAuNTPAVp2f/uM2s63xY5rs6oZO36K5khXrwI0PtIO+GYf
qY4DrWHclMt2S2bOr2UxL5/iCu141xBPrGyemKNrMGkwHQYDVR0OBBYEFOBsXZhP
o0LOx6y4sPSbKewzI5IpMB8GA1UdIwQYMBaAFOBsXZhPo0LOx6y4sPSbKewzI5Ip
MA8GA1UdEwEB/wQFMAMBAf8wFgYDVR0RBA8wDYILKi5jbGlwLnRlc3QwCgYIKoZI
zj0EAwIDSQAwRgIhAIb8iCdXhG64ncJj2kLFrR1O7M20Ph664L4JHmS5rsksAiEA
jg3gZwWLg++zzuAMdrcbBOL+hg4L1w9Uyxw4BXxDlqE=
-----END CERTIFICATE-----`,
  },
  second: {
    key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQglqX+rWUV7ZK+qZpq
lSSSK8eGi8VTDQlAK9UVxzUWp5OhRANCAATfzMjNZ709P50Kc6MyB7kkTshioxxP
qLixOhLHszyXgkVzSid84Sv9GHZSwbmEomqPmPv17O0Bf7eC6Q25o7+I
-----END PRIVATE KEY-----`,
    cert: `-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIULizt4fXDTYagGNFijUE4WMNraAowCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLY2xpcCB0ZXN0IGIwIBcNMjYxMTIxMTQ1OTAyWhgPMjEyNjEw
MjgxNDU5MDJaMBYxFDASBgNVBAMMC2NsaXAgdGVzdCBiMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAE38zIzWe9PT+dCnOjMge5JE7IYqMcT6i4sToSx7M8l4JFc0on
fOEr/Rh2UsG5hKJqj5j79eztAX+3gukNuaO/iKNrMGkwHQYDVR0OBBYEFIrsT7aH
qMKoTVS3J1s62ope6ohpMB8GA1UdIwQYMBaAFIrsT7aHqMKoTVS3J1s62ope6ohp
MA8GA1UdEwEB/wQFMAMBAf8wFgYDVR0RBA8wDYILKi5jbGlwLnRlc3QwCgYIKoZI
zj0EAwIDSAAwRQIgdIxWh9eBgQfhnhxg1fGwpt+U0gUYXnD/noKCvom3U0ACIQDu
0Ygbu1pRtC5MSMxxfPA0q2Jxc5moJbZruHbLmQgWbQ==
-----END CERTIFICATE-----`,
  },
};
