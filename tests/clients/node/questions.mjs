// What the suites ask: the twin of python/questions.py.

export const SYSTEM = 'Antworte höflich auf Züridütsch. 日本語も可。 Смайлик: 🦀 \u2028 "quoted\\" \x7f';
export const TOOL_ARGUMENTS = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };

/** Picture data that is `size` long as base64. */
export function imageBase64(size) {
  return Buffer.alloc(Math.floor((size * 3) / 4), Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))).toString('base64');
}
