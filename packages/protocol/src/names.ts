/**
 * Names of queues and clients, checked the same way on both sides. Files are named by number, so a name only has to
 * be safe in logs, URLs and shells.
 */
import { textBytes } from './bytes.js'
import { SluiceError, shown } from './errors.js'
import { LIMITS } from './limits.js'

/** The first character of the address of a topic. No queue name begins with it. */
export const TOPIC_MARK = '#'

/** Whether the address is that of a topic. */
export function isTopicAddress(address: string): boolean {
  return address.startsWith(TOPIC_MARK)
}

/** A queue's name that has passed `queueName`. */
export type QueueName = string & { readonly __brand: 'QueueName' }

/**
 * Checks a queue name: 1 to 255 bytes of ASCII letters, digits and `. _ - : /`, beginning with a letter, a digit or
 * `_`.
 * @throws SluiceError INVALID_NAME; WRONG_KIND for the name of a group
 */
export function queueName(name: unknown): QueueName {
  return checkedName('queue', name) as QueueName
}

/** Checks the name of a schedule, like the name of a queue. @throws SluiceError INVALID_NAME, WRONG_KIND */
export function scheduleName(name: unknown): string {
  return checkedName('schedule', name)
}

const NAME = /^[A-Za-z0-9_][A-Za-z0-9._:/-]*$/

function checkedName(what: string, name: unknown): string {
  if (typeof name !== 'string')
    throw new SluiceError('INVALID_NAME', `A ${what} name has the type ${typeof name}; it must be text.`)
  const bytes = textBytes(name)
  if (bytes === 0 || bytes > LIMITS.queueNameBytesMax) {
    throw new SluiceError(
      'INVALID_NAME',
      `A ${what} name takes ${bytes} bytes; it must take 1 to ${LIMITS.queueNameBytesMax}.`,
    )
  }
  if (!NAME.test(name)) {
    if (isGroupName(name) && name.split('@').every((part) => NAME.test(part)))
      throw new SluiceError(
        'WRONG_KIND',
        `${name} is a group of the stream ${name.slice(0, name.indexOf('@'))}, not a ${what === 'queue' ? 'queue or a stream' : what}.`,
      )
    throw new SluiceError(
      'INVALID_NAME',
      `The ${what} name ${shown(name)} has characters other than letters, digits and . _ - : / or begins with one of . - : /`,
    )
  }
  return name
}

/**
 * Checks the name of a group: the names of a stream and of the group, with `@` in between, in at most as many bytes as the name of
 * a queue.
 * @throws SluiceError INVALID_NAME
 */
export function groupName(name: unknown): QueueName {
  const parts = typeof name === 'string' ? name.split('@') : []
  if (typeof name !== 'string' || parts.length !== 2)
    throw new SluiceError('INVALID_NAME', `The group name ${shown(name)} must have the form stream@group.`)
  for (const part of parts) queueName(part)
  if (textBytes(name) > LIMITS.queueNameBytesMax) {
    throw new SluiceError(
      'INVALID_NAME',
      `The group name takes ${textBytes(name)} bytes; it must take at most ${LIMITS.queueNameBytesMax}.`,
    )
  }
  return name as QueueName
}

/** The name of the stream of a group. */
export function streamOfGroup(group: QueueName): QueueName {
  return group.slice(0, group.indexOf('@')) as QueueName
}

/** Checks the name of a queue, a stream or a group. @throws SluiceError INVALID_NAME */
export function addressName(name: unknown): QueueName {
  return typeof name === 'string' && isGroupName(name) ? groupName(name) : queueName(name)
}

/** Whether a valid name is that of a group. */
export function isGroupName(name: string): boolean {
  return name.includes('@')
}
