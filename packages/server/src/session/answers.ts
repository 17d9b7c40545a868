/**
 * Encodes the answers to requests: RESULT with the object in msgpack, MESSAGES for PEEK, or ERROR. The session passes
 * it the result of a request handler (see requests.ts), or the error that the handler threw.
 */
import {
  ERRORS,
  LIMITS,
  OP,
  clipText,
  encodeControl,
  encodeFault,
  encodeMessages,
  type Body,
  type Fault,
  type SluiceError,
} from '@sluice/protocol'
import type { CutShort } from '../broker/disk-requests.js'
import type { AnswerOf, RequestName } from './requests.js'

export interface Answer {
  readonly opcode: number
  readonly payload: Uint8Array
}

type Encoding<Answered> = (answer: Answered, payloadBytesMax: number) => Answer

/** Requests whose answer is not simply the result object in msgpack. */
const ENCODINGS: { readonly [Name in RequestName]?: Encoding<AnswerOf<Name>> } = {
  PEEK: (page, payloadBytesMax) => ({
    opcode: OP.MESSAGES,
    payload: encodeMessages(page, payloadBytesMax),
  }),
  REDRIVE: cutShort,
  DISCARD: cutShort,
  REPLAY: cutShort,
}

/** @throws SluiceError INVALID_ARGUMENT */
export function encodeAnswer<Name extends RequestName>(
  name: Name,
  answer: AnswerOf<Name>,
  payloadBytesMax: number,
): Answer {
  return ENCODINGS[name]?.(answer, payloadBytesMax) ?? result(answer)
}

export function result(body: object): Answer {
  return { opcode: OP.RESULT, payload: encodeControl(body as Body) }
}

// Returns the answer for a page that an error cut short: the counts so far, and the error with its code as a number.
function cutShort(page: CutShort): Answer {
  const { error } = page
  if (error === undefined) return result(page)
  return result({ ...page, error: { ...error, code: ERRORS[error.code].number } })
}

/** Returns the payload of ERROR. `scope` says whether the error ends the request, the channel or the connection. */
export function errorPayload(error: SluiceError, scope: SluiceError['scope']): Uint8Array {
  return encodeFault({ ...faultOf(error), scope })
}

export function faultOf(error: SluiceError): Fault {
  const { code, scope, retryable, retryAfterMs } = error
  return { code, scope, retryable, retryAfterMs, message: clipText(error.message, LIMITS.reasonBytesMax) }
}
