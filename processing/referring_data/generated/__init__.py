"""Referring sentences out of instance masks: what nobody wrote a sentence about can be trained on."""
