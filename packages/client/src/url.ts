/** The address of a broker: `sluice://host:port`. */
import { shown, SluiceError } from '@sluice/protocol'

export const DEFAULT_PORT = 7420
const LAST_PORT = 65_535
export const DEFAULT_URL = `sluice://localhost:${DEFAULT_PORT}`

export interface Address {
  readonly host: string
  readonly port: number
  /** The address as errors and events show it. */
  readonly text: string
}

/** @throws SluiceError INVALID_URL; NOT_SUPPORTED for credentials, which this version does not use */
export function parseUrl(url: unknown): Address {
  if (typeof url !== 'string') throw invalid(url)
  let parsed: URL
  try {
    parsed = new URL(url)
  } catch (error) {
    const port = /^sluice:\/\/[^/?#@]*:(\d+)\/?$/.exec(url)?.[1]
    if (port !== undefined && Number(port) > LAST_PORT)
      throw new SluiceError(
        'INVALID_URL',
        `The address ${shown(url)} has the port ${port}; a port is a number from 1 to ${LAST_PORT}.`,
        { cause: error },
      )
    throw invalid(url, error)
  }
  if (parsed.protocol !== 'sluice:' || parsed.hostname === '') throw invalid(url)
  if (parsed.pathname !== '' && parsed.pathname !== '/') throw invalid(url)
  if (parsed.search !== '' || parsed.hash !== '') throw invalid(url)
  if (parsed.username !== '' || parsed.password !== '') {
    // The error does not quote the address, because it contains a secret.
    throw new SluiceError(
      'NOT_SUPPORTED',
      'The address contains credentials; this version does not support them.',
    )
  }
  const port = parsed.port === '' ? DEFAULT_PORT : Number(parsed.port)
  if (port === 0) throw invalid(url)
  const host = parsed.hostname.replace(/^\[(.*)\]$/, '$1')
  return { host, port, text: `sluice://${parsed.hostname}:${port}` }
}

function invalid(url: unknown, cause?: unknown): SluiceError {
  return new SluiceError(
    'INVALID_URL',
    `The address ${shown(url)} is not of the form sluice://host:port, such as ${DEFAULT_URL}.`,
    { cause },
  )
}
