/**
 * Answers to requests, as frames: RESULT with the object as msgpack, the layout that the request has for itself, or ERROR.
 * Called by the session with what a handler returned or threw (requests.ts).
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

/** Of the requests whose answer is not their object as it is. */
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

// A fault that cut a page short travels with what the page had done by then, its code as a number.
function cutShort(page: CutShort): Answer {
  const { error } = page
  if (error === undefined) return result(page)
  return result({ ...page, error: { ...error, code: ERRORS[error.code].number } })
}

/** The payload of ERROR; `scope` is what the error ends on this connection. */
export function errorPayload(error: SluiceError, scope: SluiceError['scope']): Uint8Array {
  return encodeFault({ ...faultOf(error), scope })
}

export function faultOf(error: SluiceError): Fault {
  const { code, scope, retryable, retryAfterMs } = error
  return { code, scope, retryable, retryAfterMs, message: clipText(error.message, LIMITS.reasonBytesMax) }
}
