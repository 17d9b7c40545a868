import { createServer, type AddressInfo, type Socket } from 'node:net'
import { afterEach, expect, it } from 'vitest'
import { dialTcp, type Transport } from './transport.js'
import { parseUrl } from './url.js'

let close: (() => void) | undefined

afterEach(() => close?.())

interface Log {
  readonly transport: Transport
  readonly data: number[]
  readonly closed: Promise<Error | undefined>
  readonly opened: Promise<void>
}

function dial(port: number): Log {
  const data: number[] = []
  let opened!: () => void
  let closed!: (error: Error | undefined) => void
  const log = {
    data,
    opened: new Promise<void>((resolve) => (opened = resolve)),
    closed: new Promise<Error | undefined>((resolve) => (closed = resolve)),
  }
  const transport = dialTcp(parseUrl(`sluice://127.0.0.1:${port}`), {
    opened,
    closed,
    data: (chunk) => data.push(...chunk),
    drained: () => {},
  })
  return { ...log, transport }
}

async function listen(onSocket: (socket: Socket) => void): Promise<number> {
  const server = createServer(onSocket)
  close = () => server.close()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return (server.address() as AddressInfo).port
}

it('sends bytes both ways and reports the end', async () => {
  const port = await listen((socket) => {
    socket.once('data', (chunk) => socket.end(Buffer.concat([chunk, Buffer.of(9)])))
  })
  const log = dial(port)
  await log.opened
  log.transport.write([Uint8Array.of(1, 2), Uint8Array.of(3)])
  expect(await log.closed).toBe(undefined)
  expect(log.data).toEqual([1, 2, 3, 9])
})

it('reports a refused connection as closed', async () => {
  const port = await listen(() => {})
  close!()
  const log = dial(port)
  expect(((await log.closed) as NodeJS.ErrnoException).code).toBe('ECONNREFUSED')
})
