-- One reference of the provider's for two payments is the sign of a mistake over there; each confirmation looks for another one.
CREATE INDEX payment_requests_provider_ref ON payment_requests (provider_ref) WHERE provider_ref IS NOT NULL;
