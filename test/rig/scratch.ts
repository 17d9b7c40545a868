/** The resources that a test takes from the machine: a directory and a port. */
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Creates a directory for one test; `dispose` removes it. */
export async function scratchDirectory(
  name: string,
): Promise<{ path: string; dispose: () => Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), `sluice-${name}-`))
  return { path, dispose: () => rm(path, { recursive: true, force: true }) }
}

/** A port of the loopback interface that was free at the call, for a broker that must restart on the same port. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  const address = server.address()
  await new Promise<void>((resolve) => {
    server.close(() => resolve())
  })
  if (address === null || typeof address === 'string') throw new Error('the system assigned no port')
  return address.port
}
