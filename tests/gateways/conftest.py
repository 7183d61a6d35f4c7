"""The servers, for every test of this folder."""

from tests.gateways.served import served as served
